/* The accesses of a window on registers, by one call each: a type of fast.c. */

struct registers {
    PyObject_HEAD
    struct pyiommufd_window *window; /* what cffi made, and `handle` keeps */
    PyObject *handle;
};

static PyObject *registers_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    struct registers *registers;
    unsigned long long address;
    PyObject *handle;

    (void)keywords;
    if (!PyArg_ParseTuple(arguments, "KO:Registers", &address, &handle))
        return NULL;
    registers = (struct registers *)PyType_GenericAlloc(type, 0);
    if (registers) {
        registers->window = (struct pyiommufd_window *)(uintptr_t)address;
        registers->handle = Py_NewRef(handle);
    }
    return (PyObject *)registers;
}

static void registers_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    Py_XDECREF(((struct registers *)self)->handle);
    release(self);
    Py_DECREF(type);
}

/* What fits no plain access is left to Python: other kinds of ints, and all that is wrong. */
#define READ_METHOD(bits)                                                                            \
    static PyObject *registers_read##bits(PyObject *self, PyObject *where)                           \
    {                                                                                                \
        struct pyiommufd_window *window = ((struct registers *)self)->window;                        \
        uint##bits##_t value = 0;                                                                    \
        uint64_t offset;                                                                             \
        int result;                                                                                  \
                                                                                                     \
        if (!plain_number(where, &offset))                                                           \
            return PyObject_CallMethod(self, "_read_at", "Oi", where, bits);                         \
        Py_BEGIN_ALLOW_THREADS                                                                       \
        result = one_access(window, offset, &value, bits / 8, 0);                                    \
        Py_END_ALLOW_THREADS                                                                         \
        if (result)                                                                                  \
            return PyObject_CallMethod(self, "_refused", "iOi", -result, where, bits / 8);           \
        return PyLong_FromUnsignedLongLong(value);                                                   \
    }
READ_METHOD(8) READ_METHOD(16) READ_METHOD(32) READ_METHOD(64)

#define WRITE_METHOD(bits)                                                                           \
    static PyObject *registers_write##bits(PyObject *self, PyObject *const *given, Py_ssize_t count) \
    {                                                                                                \
        struct pyiommufd_window *window = ((struct registers *)self)->window;                        \
        uint##bits##_t value;                                                                        \
        uint64_t offset, number;                                                                     \
        int result;                                                                                  \
                                                                                                     \
        if (count != 2) {                                                                            \
            PyErr_Format(PyExc_TypeError, "takes an offset and a value (%zd arguments given)", count); \
            return NULL;                                                                             \
        }                                                                                            \
        if (!plain_number(given[0], &offset) || !plain_unsigned(given[1], &number) ||                \
            number > UINT##bits##_MAX)                                                               \
            return PyObject_CallMethod(self, "_write_at", "OOi", given[0], given[1], bits);          \
        value = (uint##bits##_t)number;                                                              \
        Py_BEGIN_ALLOW_THREADS                                                                       \
        result = one_access(window, offset, &value, bits / 8, 1);                                    \
        Py_END_ALLOW_THREADS                                                                         \
        if (result)                                                                                  \
            return PyObject_CallMethod(self, "_refused", "iOi", -result, given[0], bits / 8);        \
        Py_RETURN_NONE;                                                                              \
    }
WRITE_METHOD(8) WRITE_METHOD(16) WRITE_METHOD(32) WRITE_METHOD(64)

#define READ_ENTRY(bits, text) { "read" #bits, registers_read##bits, METH_O, "read" #bits "($self, offset, /)\n--\n\n" text }
#define WRITE_ENTRY(bits, text)                                                            \
    { "write" #bits, (PyCFunction)(void (*)(void))registers_write##bits, METH_FASTCALL,    \
      "write" #bits "($self, offset, value, /)\n--\n\n" text }

static PyMethodDef registers_methods[] = {
    READ_ENTRY(8, "Read one byte. Raises as `read64` does."),
    READ_ENTRY(16, "Read 2 bytes by one access. Raises as `read64` does."),
    READ_ENTRY(32, "Read 4 bytes by one access. Raises as `read64` does."),
    READ_ENTRY(64, "Read 8 bytes by one access.\n\n"
                   "Raises:\n"
                   "    ValueError: The offset is not a multiple of the width, or the access reaches out of the window.\n"
                   "    TypeError: The offset is no int.\n"
                   "    RegionFaultError: The device does not answer.\n"
                   "    AccessDeniedError: The region cannot be read, or not be written to.\n"
                   "    ClosedError, ForkedError: The window is closed, or belongs to the parent process."),
    WRITE_ENTRY(8, "Write one byte. Raises as `write64` does."),
    WRITE_ENTRY(16, "Write 2 bytes by one access. Raises as `write64` does."),
    WRITE_ENTRY(32, "Write 4 bytes by one access. Raises as `write64` does."),
    WRITE_ENTRY(64, "Write 8 bytes by one access.\n\n"
                    "Raises:\n"
                    "    ValueError: As for `read64`, or the value is negative or does not fit the width.\n"
                    "    TypeError: The offset or the value is no int.\n"
                    "    RegionFaultError: The device does not answer.\n"
                    "    AccessDeniedError, ClosedError, ForkedError: As for `read64`."),
    { NULL, NULL, 0, NULL },
};
static PyMemberDef registers_members[] = {
    { "_handle", T_OBJECT_EX, offsetof(struct registers, handle), READONLY, "The window, as cffi made it." },
    { NULL, 0, 0, 0, NULL },
};
static const char registers_doc[] =
    "Registers(address, handle, /)\n--\n\n"
    "Accesses of a struct pyiommufd_window, which is at that address as long as the handle is there.";
static PyType_Slot registers_slots[] = {
    { Py_tp_doc, (void *)registers_doc },
    { Py_tp_new, registers_new },
    { Py_tp_dealloc, registers_dealloc },
    { Py_tp_methods, registers_methods },
    { Py_tp_members, registers_members },
    { 0, NULL },
};
static PyType_Spec registers_spec = {
    "pyiommufd._fast.Registers", sizeof(struct registers), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, registers_slots,
};
