// A file for each type: they compile side by side.
#define TYPE f16
#define NAME f16
#include "epilogue_kernels.inl"
