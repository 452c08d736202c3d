// A file for each type: they compile side by side.
#define TYPE float
#define NAME f32
#include "epilogue_kernels.inl"
