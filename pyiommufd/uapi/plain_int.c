/* Plain ints of Python as C has them: for the types of fast.c. */

#include <limits.h>
#include <stddef.h>
#include <structmember.h>

/* A plain int that is not negative and fits 63 bits; 0 where it is another thing. */
static int plain_number(PyObject *number, uint64_t *value)
{
    /* PyLong_AsUnsignedLongLong takes several times as long; what only that takes is left to the caller. */
    Py_ssize_t result = PyLong_CheckExact(number) ? PyLong_AsSsize_t(number) : -1;

    *value = (uint64_t)result;
    if (result >= 0)
        return 1;
    PyErr_Clear();
    return 0;
}

/* The same, and one that takes 64 bits. */
static int plain_unsigned(PyObject *number, uint64_t *value)
{
    if (plain_number(number, value))
        return 1;
    if (!PyLong_CheckExact(number))
        return 0;
    *value = PyLong_AsUnsignedLongLong(number);
    if (*value != UINT64_MAX || !PyErr_Occurred())
        return 1;
    PyErr_Clear();
    return 0;
}
