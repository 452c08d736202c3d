// The epilogue's kernels for half; a file for each type, so that they compile side by side.
#define TYPE f16
#define NAME f16
#include "epilogue_kernels.inl"
