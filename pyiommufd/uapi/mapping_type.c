/* Map and unmap, with the Python objects that they make, by one call each: types of fast.c. */

/* Memory held through the buffer protocol: its owner can neither resize nor free it. */
struct held {
    PyObject_HEAD
    Py_buffer view;
};

/* What maps into one address space. */
struct mapper {
    PyObject_HEAD
    struct pyiommufd_object *object; /* what cffi made, and `owner` keeps */
    PyObject *owner;
    PyObject *ioas;
    PyObject *table; /* a dict: each mapping, with what holds its memory */
    PyTypeObject *made; /* the class of the mappings: a subclass of Mapping */
};

/* One mapping. */
struct mapping {
    PyObject_HEAD
    struct pyiommufd_piece piece;
    struct mapper *mapper;
};

static PyTypeObject *held_type, *mapper_type, *mapping_type;

/* Held */

static void held_release(struct held *held)
{
    Py_buffer view = held->view;

    /* First, since the owner may run Python code when it is told, and that come here again. */
    memset(&held->view, 0, sizeof(held->view));
    PyBuffer_Release(&view);
}

static struct held *hold(PyObject *buffer, int writeable)
{
    struct held *held;

    if (Py_TYPE(buffer) == held_type)
        return (struct held *)Py_NewRef(buffer);
    held = (struct held *)PyType_GenericAlloc(held_type, 0);
    if (held && PyObject_GetBuffer(buffer, &held->view, writeable ? PyBUF_WRITABLE : PyBUF_SIMPLE)) {
        held->view.obj = NULL;
        Py_DECREF(held);
        return NULL;
    }
    return held;
}

static PyObject *held_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    PyObject *buffer;
    int writeable;

    (void)type, (void)keywords;
    if (!PyArg_ParseTuple(arguments, "Op:Held", &buffer, &writeable))
        return NULL;
    return (PyObject *)hold(buffer, writeable);
}

static PyObject *held_address(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromVoidPtr(((struct held *)self)->view.buf);
}

static Py_ssize_t held_length(PyObject *self)
{
    return ((struct held *)self)->view.len;
}

static int held_traverse(PyObject *self, visitproc visit, void *arg)
{
    PyObject *owner = ((struct held *)self)->view.obj;

    Py_VISIT(Py_TYPE(self));
    /*
     * Up to CPython 3.11.8 and 3.12.2 the garbage collector clears a memoryview though its memory is held, which crashes
     * when that is let go of (gh-77894). Not told of it, the collector keeps what is in a cycle through one.
     */
    if (!owner || !PyMemoryView_Check(owner) || Py_Version >= 0x030c0300 ||
        (Py_Version >= 0x030b0900 && Py_Version < 0x030c0000))
        Py_VISIT(owner);
    return 0;
}

static int held_clear(PyObject *self)
{
    held_release((struct held *)self);
    return 0;
}

static void held_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);

    PyObject_GC_UnTrack(self);
    held_release((struct held *)self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyGetSetDef held_getset[] = {
    { "address", held_address, NULL, "Where the memory is.", NULL },
    { NULL, NULL, NULL, NULL, NULL },
};
static const char held_doc[] =
    "Held(buffer, writeable, /)\n--\n\n"
    "Memory held through the buffer protocol: its owner can neither resize nor free it. Its length is in bytes.\n\n"
    "Raises TypeError where it is no buffer; BufferError or ValueError where it is read-only and is to be writeable,\n"
    "not in one piece, or closed.";
static PyType_Slot held_slots[] = {
    { Py_tp_doc, (void *)held_doc },
    { Py_tp_new, held_new },           { Py_tp_dealloc, held_dealloc }, { Py_tp_traverse, held_traverse },
    { Py_tp_clear, held_clear },       { Py_sq_length, held_length },   { Py_tp_getset, held_getset },
    { 0, NULL },
};
static PyType_Spec held_spec = {
    "pyiommufd._fast.Held", sizeof(struct held), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, held_slots,
};

/* Mapping */

static struct mapping *mapping_made(PyTypeObject *type, struct mapper *mapper)
{
    struct mapping *mapping = (struct mapping *)PyType_GenericAlloc(type, 0);

    if (mapping)
        mapping->mapper = (struct mapper *)Py_NewRef((PyObject *)mapper);
    return mapping;
}

static PyObject *mapping_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    PyObject *mapper = PyTuple_Size(arguments) > 0 ? PyTuple_GetItem(arguments, 0) : NULL;

    (void)keywords; /* further arguments are those of a subclass */
    if (!mapper || !PyObject_TypeCheck(mapper, mapper_type)) {
        PyErr_SetString(PyExc_TypeError, "a mapping is made by the methods of an IOAS");
        return NULL;
    }
    return (PyObject *)mapping_made(type, (struct mapper *)mapper);
}

/* Take a mapping off the table, which another thread or the close of the address space may have done. */
static int forget(struct mapping *mapping)
{
    PyObject *table = mapping->mapper->table;

    if (!PyDict_DelItem(table, (PyObject *)mapping))
        return 0;
    if (!PyErr_ExceptionMatches(PyExc_KeyError))
        return -1;
    PyErr_Clear();
    return 0;
}

static PyObject *mapping_unmap(PyObject *self, PyObject *unused)
{
    struct mapping *mapping = (struct mapping *)self;
    int result;

    (void)unused;
    Py_BEGIN_ALLOW_THREADS
    result = pyiommufd_ioas_unmap_many(&mapping->piece, 1);
    Py_END_ALLOW_THREADS
    if (!result && forget(mapping))
        return NULL;
    return PyLong_FromLong(result);
}

static PyObject *mapping_ioas(PyObject *self, void *unused)
{
    (void)unused;
    return Py_NewRef(((struct mapping *)self)->mapper->ioas);
}

static PyObject *mapping_address(PyObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromVoidPtr(&((struct mapping *)self)->piece);
}

static int mapping_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT((PyObject *)((struct mapping *)self)->mapper);
    return 0;
}

static void mapping_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);

    PyObject_GC_UnTrack(self);
    Py_DECREF((PyObject *)((struct mapping *)self)->mapper);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMethodDef mapping_methods[] = {
    { "_unmap", mapping_unmap, METH_NOARGS,
      "IOMMU_IOAS_UNMAP: 0, and it is off the table, also where it was not mapped; or the negative errno." },
    { NULL, NULL, 0, NULL },
};
static PyMemberDef mapping_members[] = {
    { "iova", T_ULONGLONG, offsetof(struct mapping, piece.iova), READONLY,
      "Where devices see the memory: their address of its first byte." },
    { "length", T_ULONGLONG, offsetof(struct mapping, piece.length), READONLY, "Bytes." },
    { "_state", T_ULONGLONG, offsetof(struct mapping, piece.state), READONLY,
      "0: it is not mapped." },
    { NULL, 0, 0, 0, NULL },
};
static PyGetSetDef mapping_getset[] = {
    { "_ioas", mapping_ioas, NULL, "The address space.", NULL },
    { "_address", mapping_address, NULL, "Where its struct pyiommufd_piece is, as long as it exists.", NULL },
    { NULL, NULL, NULL, NULL, NULL },
};
/* No tp_clear: what a mapping refers to is in a cycle with the table that the mapper clears. */
static const char mapping_doc[] =
    "Mapping(mapper, /, *more)\n--\n\n"
    "A mapping of the kernel's (struct pyiommufd_piece); a subclass adds what users see.";
static PyType_Slot mapping_slots[] = {
    { Py_tp_doc, (void *)mapping_doc },
    { Py_tp_new, mapping_new },           { Py_tp_dealloc, mapping_dealloc }, { Py_tp_traverse, mapping_traverse },
    { Py_tp_methods, mapping_methods },   { Py_tp_members, mapping_members }, { Py_tp_getset, mapping_getset },
    { 0, NULL },
};
static PyType_Spec mapping_spec = {
    "pyiommufd._fast.Mapping", sizeof(struct mapping), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, mapping_slots,
};

/* Mapper */

static PyObject *mapper_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    PyObject *owner, *ioas, *table, *made;
    unsigned long long address;
    struct mapper *mapper;

    (void)keywords;
    if (!PyArg_ParseTuple(arguments, "KOOOO:Mapper", &address, &owner, &ioas, &table, &made))
        return NULL;
    if (!PyDict_Check(table) || !PyType_Check(made) || !PyType_IsSubtype((PyTypeObject *)made, mapping_type)) {
        PyErr_SetString(PyExc_TypeError, "a Mapper has a table that is a dict, and makes mappings");
        return NULL;
    }
    mapper = (struct mapper *)PyType_GenericAlloc(type, 0);
    if (mapper) {
        mapper->object = (struct pyiommufd_object *)(uintptr_t)address;
        mapper->owner = Py_NewRef(owner);
        mapper->ioas = Py_NewRef(ioas);
        mapper->table = Py_NewRef(table);
        mapper->made = (PyTypeObject *)Py_NewRef(made);
    }
    return (PyObject *)mapper;
}

/* Whether the arguments begin with that many; the last two of them are the iova, or None, and the flags. */
static int place(PyObject *const *arguments, Py_ssize_t given, Py_ssize_t wanted, uint64_t *iova, uint32_t *flags)
{
    PyObject *where;

    if (given != wanted) {
        PyErr_Format(PyExc_TypeError, "takes %zd arguments (%zd given)", wanted, given);
        return 0;
    }
    *flags = (uint32_t)PyLong_AsSsize_t(arguments[wanted - 1]);
    if (*flags == UINT32_MAX && PyErr_Occurred())
        return 0;
    where = arguments[wanted - 2];
    *iova = 0;
    if (where == Py_None)
        return 1;
    *flags |= IOMMU_IOAS_MAP_FIXED_IOVA;
    if (plain_number(where, iova))
        return 1;
    *iova = PyLong_AsUnsignedLongLong(where);
    if (*iova != UINT64_MAX || !PyErr_Occurred())
        return 1;
    if (PyErr_ExceptionMatches(PyExc_OverflowError))
        PyErr_Format(PyExc_ValueError, "iova %S does not fit 64 bits without a sign", where);
    return 0;
}

/* The end of a map: the mapping, or where it was refused (result, address, length). */
static PyObject *outcome(struct mapping *mapping, int result, const void *address, uint64_t length)
{
    PyObject *refusal;

    if (!result)
        return (PyObject *)mapping;
    if (forget(mapping)) {
        Py_DECREF((PyObject *)mapping);
        return NULL;
    }
    Py_DECREF((PyObject *)mapping);
    refusal = Py_BuildValue("iKK", result, (unsigned long long)(uintptr_t)address, (unsigned long long)length);
    return refusal;
}

static PyObject *mapper_map(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    struct mapper *mapper = (struct mapper *)self;
    PyObject *made = NULL;
    struct mapping *mapping;
    struct held *held;
    uint32_t flags;
    uint64_t iova;
    int result;

    if (!place(arguments, given, 3, &iova, &flags))
        return NULL;
    held = hold(arguments[0], flags & IOMMU_IOAS_MAP_WRITEABLE);
    if (!held)
        return NULL;
    mapping = mapping_made(mapper->made, mapper);
    /* On record before it is mapped: the memory cannot go while another thread closes the address space. */
    if (!mapping || PyDict_SetItem(mapper->table, (PyObject *)mapping, (PyObject *)held)) {
        Py_XDECREF((PyObject *)mapping);
    } else {
        const void *memory = held->view.buf;
        const uint64_t length = (uint64_t)held->view.len;

        Py_BEGIN_ALLOW_THREADS
        result = ioas_map(mapper->object, &mapping->piece, flags, memory, length, iova);
        Py_END_ALLOW_THREADS
        made = outcome(mapping, result, memory, length);
        /* Not only when it is freed: the traceback of the error that follows may keep the caller's memoryview. */
        if (result && (PyObject *)held != arguments[0])
            held_release(held);
    }
    Py_DECREF((PyObject *)held);
    return made;
}

static PyObject *mapper_map_file(PyObject *self, PyObject *const *arguments, Py_ssize_t given)
{
    struct mapper *mapper = (struct mapper *)self;
    unsigned long long start, length;
    struct mapping *mapping;
    uint32_t flags;
    uint64_t iova;
    long file;
    int result;

    if (!place(arguments, given, 6, &iova, &flags))
        return NULL;
    file = PyLong_AsLong(arguments[1]);
    if (file > INT_MAX || file < INT_MIN)
        PyErr_SetString(PyExc_OverflowError, "this is no file descriptor");
    start = PyLong_AsUnsignedLongLong(arguments[2]);
    length = PyLong_AsUnsignedLongLong(arguments[3]);
    if (PyErr_Occurred())
        return NULL;
    mapping = mapping_made(mapper->made, mapper);
    if (!mapping || PyDict_SetItem(mapper->table, (PyObject *)mapping, arguments[0])) {
        Py_XDECREF((PyObject *)mapping);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = ioas_map_file(mapper->object, &mapping->piece, flags, (int)file, start, length, iova);
    Py_END_ALLOW_THREADS
    return outcome(mapping, result, NULL, length);
}

static int mapper_traverse(PyObject *self, visitproc visit, void *arg)
{
    struct mapper *mapper = (struct mapper *)self;

    Py_VISIT(Py_TYPE(self));
    Py_VISIT(mapper->owner);
    Py_VISIT(mapper->ioas);
    Py_VISIT(mapper->table);
    Py_VISIT((PyObject *)mapper->made);
    return 0;
}

/*
 * No tp_clear here either: a cycle through a mapper goes through the address space, a Python object, or its table, a
 * dict; the garbage collector clears those.
 */
static void mapper_dealloc(PyObject *self)
{
    struct mapper *mapper = (struct mapper *)self;
    PyTypeObject *type = Py_TYPE(self);

    PyObject_GC_UnTrack(self);
    Py_XDECREF(mapper->owner);
    Py_XDECREF(mapper->ioas);
    Py_XDECREF(mapper->table);
    Py_XDECREF((PyObject *)mapper->made);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMethodDef mapper_methods[] = {
    { "map", (PyCFunction)(void (*)(void))mapper_map, METH_FASTCALL,
      "(buffer or Held, iova or None, flags) by IOMMU_IOAS_MAP; raises as Held does, and ValueError for an iova that does\n"
      "not fit. The mapping, or (result, address, length) where nothing was mapped." },
    { "map_file", (PyCFunction)(void (*)(void))mapper_map_file, METH_FASTCALL,
      "(what holds the memory, fd, start, length, iova or None, flags) by IOMMU_IOAS_MAP_FILE; the same." },
    { NULL, NULL, 0, NULL },
};
static const char mapper_doc[] =
    "Mapper(address, owner, ioas, table, made, /)\n--\n\n"
    "Maps into one address space: the address of its struct pyiommufd_object, the owner of that, the IOAS, the dict that\n"
    "has each mapping with what holds its memory, and the class of mappings.";
static PyType_Slot mapper_slots[] = {
    { Py_tp_doc, (void *)mapper_doc },
    { Py_tp_new, mapper_new },         { Py_tp_dealloc, mapper_dealloc }, { Py_tp_traverse, mapper_traverse },
    { Py_tp_methods, mapper_methods }, { 0, NULL },
};
static PyType_Spec mapper_spec = {
    "pyiommufd._fast.Mapper", sizeof(struct mapper), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, mapper_slots,
};

/* Pieces */

/* A piece of the caller's, (offset, length, iova or None), within memory of a size; 0 where it is another or wrong. */
static int plain_piece(PyObject *given, uint64_t size, struct pyiommufd_piece *piece)
{
    PyObject *iova;

    if (!PyTuple_CheckExact(given) || PyTuple_Size(given) != 3)
        return 0;
    if (!plain_number(PyTuple_GetItem(given, 0), &piece->offset) ||
        !plain_number(PyTuple_GetItem(given, 1), &piece->length))
        return 0;
    iova = PyTuple_GetItem(given, 2);
    if (iova == Py_None)
        piece->iova = UINT64_MAX;
    else if (!plain_number(iova, &piece->iova))
        return 0;
    return piece->offset <= size && piece->length && piece->length <= size - piece->offset;
}

static PyObject *pack_pieces(PyObject *module, PyObject *arguments)
{
    unsigned long long size;
    Py_ssize_t count, at = 0;
    Py_buffer memory;
    PyObject *pieces;
    int fits;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "w*O!K:pack_pieces", &memory, &PyList_Type, &pieces, &size))
        return NULL;
    count = memory.len / (Py_ssize_t)sizeof(struct pyiommufd_piece);
#ifdef Py_GIL_DISABLED
    count = -1; /* another thread could change the list between two of these calls */
#endif
    fits = count == PyList_Size(pieces);
    if (fits)
        while (at < count && plain_piece(PyList_GetItem(pieces, at), size, (struct pyiommufd_piece *)memory.buf + at))
            at++;
    PyBuffer_Release(&memory);
    return PyBool_FromLong(fits && at == count);
}

/* The bytes of a range that mappings are in, and a list of those that are none of one piece. */
static PyObject *mapped_within(PyObject *module, PyObject *arguments)
{
    unsigned long long iova, length, bytes = 0;
    PyObject *mappings, *others, *result = NULL;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "O!KK:mapped_within", &PyTuple_Type, &mappings, &iova, &length))
        return NULL;
    others = PyList_New(0);
    if (!others)
        return NULL;
    for (Py_ssize_t at = 0; at < PyTuple_Size(mappings); at++) {
        PyObject *one = PyTuple_GetItem(mappings, at);
        const struct pyiommufd_piece *piece = &((struct mapping *)one)->piece;

        if (PyObject_TypeCheck(one, mapping_type) && piece->ioas)
            bytes += pyiommufd_mapped_within(piece, 1, iova, length);
        else if (PyList_Append(others, one))
            goto out;
    }
    result = Py_BuildValue("KO", bytes, others);
out:
    Py_DECREF(others);
    return result;
}
