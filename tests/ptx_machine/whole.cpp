// All of it, compiled at once: most of what a small file takes is in the headers that all include.
#include "arithmetic.cpp"
#include "integers.cpp"
#include "launch.cpp"
#include "machine.cpp"
#include "memory.cpp"
#include "read.cpp"
#include "steps.cpp"
