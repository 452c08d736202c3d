// The epilogue's kernels for float; a file for each type, so that they compile side by side.
#define TYPE float
#define NAME f32
#include "epilogue_kernels.inl"
