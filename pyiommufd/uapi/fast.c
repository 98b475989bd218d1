/*
 * The extension module pyiommufd._fast: what is used so often that cffi would cost more than the work, with Python's own
 * interface. A map by cffi takes four objects and as many calls: with its unmap 4.6 times a loop in C. Included
 * last by the source that build_cffi.py makes, so it shares the extension's file and C functions: its calls count as the
 * others' do, and wait for them.
 *
 * All other calls go by cffi, and new ones do. It keeps to CPython's limited API. Python runs no signal handler within a
 * call here: what it does is done whole, or not at all.
 */

static PyMethodDef fast_functions[] = {
    { "pack_pieces", pack_pieces, METH_VARARGS,
      "(memory, list, size): write pieces (offset, length, iova or None) to memory that is all zeros, as struct\n"
      "pyiommufd_piece. False where one of them is not a tuple of plain ints, or not within the size." },
    { "mapped_within", mapped_within, METH_VARARGS,
      "(mappings, iova, length): how many bytes of a range the mappings of a tuple are in, and a list of those that were\n"
      "not looked at: what has many pieces, or is not mapped yet." },
    { NULL, NULL, 0, NULL },
};
static struct PyModuleDef fast_module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "pyiommufd._fast",
    .m_size = -1,
    .m_methods = fast_functions,
};

static PyTypeObject *add_type(PyObject *module, const char *name, PyType_Spec *spec)
{
    PyObject *type = PyType_FromSpec(spec);

    if (!type || PyModule_AddObjectRef(module, name, type)) {
        Py_XDECREF(type);
        return NULL;
    }
    return (PyTypeObject *)type;
}

PyMODINIT_FUNC PyInit__fast(void)
{
    PyObject *module = PyModule_Create(&fast_module);

    if (!module)
        return NULL;
    held_type = add_type(module, "Held", &held_spec);
    mapping_type = add_type(module, "Mapping", &mapping_spec);
    mapper_type = add_type(module, "Mapper", &mapper_spec);
    if (!held_type || !mapping_type || !mapper_type || !add_type(module, "Registers", &registers_spec)) {
        Py_DECREF(module);
        return NULL;
    }
#ifdef Py_GIL_DISABLED
    PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED);
#endif
    return module;
}
