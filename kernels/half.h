/* Rows in half precision. A choice computes both sides, so that the loops vectorise. */

#include "native.h"

enum { AS_REAL, AS_BFLOAT16, AS_FLOAT16, AS_BYTE };

typedef union {
    float value;
    uint32_t bits;
} Bits;

INLINE float read_bfloat16(uint16_t x)
{
    Bits of = {.bits = (uint32_t)x << 16};
    return of.value;
}

/* The nearest, of two as near the even one; NaN stays NaN. */
INLINE uint16_t write_bfloat16(float x)
{
    Bits of = {.value = x};
    uint32_t nearest = (of.bits + 0x7fff + (of.bits >> 16 & 1)) >> 16;
    return x == x ? nearest : 0x7fc0;
}

INLINE float read_float16(uint16_t x)
{
    uint32_t exponent = x & 0x7c00u, shifted = (x & 0x7fffu) << 13;
    Bits normal = {.bits = shifted + (112u << 23)}, special = {.bits = shifted + (224u << 23)};
    Bits subnormal = {.bits = shifted + (113u << 23)}, smallest = {.bits = 113u << 23};
    subnormal.value -= smallest.value;
    Bits of = {.bits = exponent == 0x7c00 ? special.bits : exponent == 0 ? subnormal.bits : normal.bits};
    of.bits |= (x & 0x8000u) << 16;
    return of.value;
}

INLINE uint32_t choose(int condition, uint32_t yes, uint32_t no)
{
    uint32_t mask = -(uint32_t)condition;
    return (yes & mask) | (no & ~mask);
}

INLINE uint16_t write_float16(float x)
{
    Bits of = {.value = x}, aligned = {.bits = 126u << 23}; /* adding it puts subnormal numbers in the last bits */
    uint32_t sign = of.bits >> 16 & 0x8000, size = of.bits & 0x7fffffff;
    Bits subnormal = {.bits = size};
    subnormal.value += aligned.value;
    uint32_t nearest = (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13;
    uint32_t special = choose(size > 0x7f800000, 0x7e00, 0x7c00);
    uint32_t number = choose(size < 113u << 23, subnormal.bits - aligned.bits, nearest);
    return sign | choose(size >= 143u << 23, special, number);
}

EVERY_VECTOR_WIDTH
static void read_half(int64_t storage, const uint16_t *restrict from, int64_t width, float *restrict to)
{
    if (storage == AS_BFLOAT16)
        for (int64_t i = 0; i < width; i++)
            to[i] = read_bfloat16(from[i]);
    else
        for (int64_t i = 0; i < width; i++)
            to[i] = read_float16(from[i]);
}

EVERY_VECTOR_WIDTH
__attribute__((unused)) static void write_half(int64_t storage, const float *restrict from, int64_t width, uint16_t *restrict to)
{
    if (storage == AS_BFLOAT16)
        for (int64_t i = 0; i < width; i++)
            to[i] = write_bfloat16(from[i]);
    else
        for (int64_t i = 0; i < width; i++)
            to[i] = write_float16(from[i]);
}
