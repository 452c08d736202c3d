// The epilogue's kernels for bfloat16; a file for each type, so that they compile side by side.
#define TYPE bf16
#define NAME bf16
#include "epilogue_kernels.inl"
