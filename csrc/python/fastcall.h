// The plain eager step without argument parsing, dispatcher or autograd in between.
#pragma once

#include <Python.h>

namespace cmsolvers {

void add_fastcall(PyObject* module);

}  // namespace cmsolvers
