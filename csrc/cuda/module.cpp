// SPDX-FileCopyrightText: 2026 The nag_kernels authors
// SPDX-License-Identifier: Apache-2.0
//
// The Python module nag_kernels._C_cuda (abi3). Importing it defines the operations of nag_cuda; it also tells how
// often each kernel was launched and how far the kernels go.

#include <Python.h>

#include "launch.h"
#include "tile_size.h"

namespace {

PyObject* launches(PyObject*, PyObject*) {
  const auto count = [](nag::Counter kernel) {
    return static_cast<long long>(nag::launches[static_cast<int>(kernel)].load());
  };
  return Py_BuildValue("{s:L,s:L,s:L,s:L}", "guidance", count(nag::Counter::kGuidance), "text",
                       count(nag::Counter::kText), "branches", count(nag::Counter::kBranches), "cluster",
                       count(nag::Counter::kCluster));
}

PyObject* limits(PyObject*, PyObject*) {
  return Py_BuildValue("{s:i,s:i,s:i,s:i}", "text_size", nag::kTextMaxSize, "text_length", nag::kTextMaxLength,
                       "branch_size", nag::kBranchMaxSize, "cluster_size",
                       nag::cluster_is_built() ? nag::kClusterMaxSize : 0);
}

PyMethodDef methods[] = {
    {"launches", launches, METH_NOARGS, "How often each kernel was launched, as {kernel: count}."},
    {"limits", limits, METH_NOARGS, "Head sizes and text lengths up to which the kernels go."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_C_cuda", "CUDA kernels of nag_kernels.", -1, methods, nullptr, nullptr, nullptr, nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__C_cuda() { return PyModule_Create(&module); }
