// AVX-512 (F, BW, VL, DQ): Intel since Skylake-X.
#define MUNIT_FAST_ISA "avx512"
#define MUNIT_FAST_TABLE avx512_kernels
#define MUNIT_FAST_AVX512
#define MUNIT_FAST_VECTOR_BYTES 64
#include "kernels.inl"
