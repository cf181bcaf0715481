#include "plain.cu"
