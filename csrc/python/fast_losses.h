// The losses' operators without argument parsing or dispatcher in between.
#pragma once

#include <Python.h>

namespace cmsolvers {

void add_fast_losses(PyObject* module);
void add_fast_pairs(PyObject* module);
void add_generator(PyObject* module);

}  // namespace cmsolvers
