// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The Python module nag_kernels._C (abi3). Importing it runs the registrations of csrc/cpu; it also tells which SIMD
// path runs and how often each operation has run on it.

#include <Python.h>

#include <string>

#include "cpu/capability.h"

namespace {

PyObject* capability(PyObject*, PyObject*) { return PyUnicode_FromString(nag::kernels().capability); }

void add_count(void* dict, const char* op, const char* path, int64_t count) {
  PyObject* value = PyLong_FromLongLong(count);
  if (value != nullptr) {
    PyDict_SetItemString(static_cast<PyObject*>(dict), (std::string(op) + "/" + path).c_str(), value);
    Py_DECREF(value);
  }
}

PyObject* calls(PyObject*, PyObject*) {
  PyObject* dict = PyDict_New();
  if (dict != nullptr) {
    nag::visit_calls(add_count, dict);
  }
  if (PyErr_Occurred()) {
    Py_XDECREF(dict);
    return nullptr;
  }
  return dict;
}

PyMethodDef methods[] = {
    {"capability", capability, METH_NOARGS,
     "The SIMD path that runs: amx, avx512_bf16, avx512, avx2, neon or default."},
    {"calls", calls, METH_NOARGS, "How often each operation ran on each path, as {'operation/path': count}."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_C", "C++ CPU kernels of nag_kernels.", -1, methods, nullptr, nullptr, nullptr, nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
