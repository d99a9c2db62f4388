/* The inner loops of weigh.quant, bit for bit as its numpy computes them.
 *
 * All loops go over whole blocks of one array; the caller (weigh_kernels/__init__.py) cuts arrays and checks sizes, and
 * calls from several threads: the interpreter's lock is released. Sums and products are single operations in fp32, never
 * fused (-ffp-contract=off), so that every vector width gives the same bits.
 *
 * A block's largest magnitude is found among integers: magnitudes of IEEE numbers are ordered as their bits are, and a
 * NaN is above infinity, so that it is not lost as in a maximum of floats.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && defined(__linux__)
#define VECTOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTOR
#endif

#define LARGEST_BLOCK 4096
static const float LEAST = 1e-38f; /* of an absmax that is divided by */
static const float LEVELS = 127.0f;

static inline float bits_to_float(uint32_t bits) {
    float found;
    memcpy(&found, &bits, 4);
    return found;
}

/* The numbers of a block in fp32, and its largest magnitude. */
static inline __attribute__((always_inline)) const float *numbers(
    const void *source, int is_bf16, Py_ssize_t at, Py_ssize_t count, float *room) {
    if (!is_bf16) return (const float *)source + at;
    const uint16_t *from = (const uint16_t *)source + at;
    uint32_t *to = (uint32_t *)room;
    for (Py_ssize_t i = 0; i < count; i++) to[i] = (uint32_t)from[i] << 16;
    return room;
}

static inline __attribute__((always_inline)) float largest(const float *x, Py_ssize_t count) {
    const uint32_t *bits = (const uint32_t *)x;
    uint32_t most = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        uint32_t magnitude = bits[i] & 0x7fffffffu;
        most = magnitude > most ? magnitude : most;
    }
    return bits_to_float(most);
}

/* Adding and subtracting 1.5 * 2^23 rounds to the nearest, ties to even, as rint does; 127 is far from its limits. */
static inline int8_t rounded(float x) {
    const float magic = 12582912.0f;
    float sum = x + magic;
    int32_t bits;
    memcpy(&bits, &sum, 4);
    return (int8_t)bits;
}

VECTOR static void int8_blocks(const void *source, int is_bf16, Py_ssize_t count, Py_ssize_t block, int8_t *codes,
                               float *absmax) {
    float room[LARGEST_BLOCK];
    for (Py_ssize_t b = 0, at = 0; at < count; b++, at += block) {
        Py_ssize_t n = count - at < block ? count - at : block;
        const float *x = numbers(source, is_bf16, at, n, room);
        float most = largest(x, n);
        float scale = LEVELS / (most > LEAST ? most : LEAST);
        absmax[b] = most;
        for (Py_ssize_t i = 0; i < n; i++) codes[at + i] = rounded(x[i] * scale);
    }
}

static inline float clipped(float x) {
    x = x < -1.0f ? -1.0f : x;
    return x > 1.0f ? 1.0f : x;
}

/* 15 comparisons: the number of borders below is the place in ascending order; `order` has the code of each. */
VECTOR static void four_bit_blocks(const void *source, int is_bf16, Py_ssize_t count, Py_ssize_t block,
                                   const float *borders, const uint8_t *order, uint8_t *codes, float *absmax) {
    float room[LARGEST_BLOCK];
    uint8_t nibbles[LARGEST_BLOCK];
    int sorted = 1;
    for (int i = 0; i < 16; i++) sorted &= order[i] == i;
    for (Py_ssize_t b = 0, at = 0; at < count; b++, at += block) {
        Py_ssize_t n = count - at < block ? count - at : block;
        const float *x = numbers(source, is_bf16, at, n, room);
        float most = largest(x, n);
        float scale = 1.0f / (most > LEAST ? most : LEAST);
        absmax[b] = most;
        for (Py_ssize_t i = 0; i < n; i++) {
            float scaled = clipped(x[i] * scale);
            int32_t below = 0;
            for (int k = 0; k < 15; k++) below += scaled > borders[k];
            nibbles[i] = (uint8_t)below;
        }
        if (!sorted)
            for (Py_ssize_t i = 0; i < n; i++) nibbles[i] = order[nibbles[i]];
        uint8_t *out = codes + at / 2;
        for (Py_ssize_t i = 0; i < n / 2; i++) out[i] = (uint8_t)(nibbles[2 * i] << 4 | nibbles[2 * i + 1]);
    }
}

/* Numbers between -1 and 1. */
VECTOR static void normalized(const float *x, Py_ssize_t n, float scale, float *out) {
    for (Py_ssize_t i = 0; i < n; i++) out[i] = clipped(x[i] * scale);
}

VECTOR static float start(const void *source, int is_bf16, Py_ssize_t at, Py_ssize_t n, float *room) {
    const float *x = numbers(source, is_bf16, at, n, room);
    float most = largest(x, n);
    normalized(x, n, 1.0f / (most > LEAST ? most : LEAST), room);
    return most;
}

/* The first 17 bits of a number say its code up to one border. Gathers are slower than loads one by one, so that this
 * loop is not for the vector units. */
static void dynamic_blocks(const void *source, int is_bf16, Py_ssize_t count, Py_ssize_t block, const uint8_t *below,
                           const float *border, uint8_t *codes, float *absmax) {
    float room[LARGEST_BLOCK];
    for (Py_ssize_t b = 0, at = 0; at < count; b++, at += block) {
        Py_ssize_t n = count - at < block ? count - at : block;
        absmax[b] = start(source, is_bf16, at, n, room);
        const uint32_t *bits = (const uint32_t *)room;
        for (Py_ssize_t i = 0; i < n; i++) {
            uint32_t index = bits[i] >> 15;
            codes[at + i] = (uint8_t)(below[index] + (room[i] > border[index]));
        }
    }
}

VECTOR static void int8_values(const int8_t *codes, Py_ssize_t count, Py_ssize_t block, const float *scales, float *out) {
    for (Py_ssize_t b = 0, at = 0; at < count; b++, at += block) {
        Py_ssize_t n = count - at < block ? count - at : block;
        float scale = scales[b];
        for (Py_ssize_t i = 0; i < n; i++) out[at + i] = (float)codes[at + i] * scale;
    }
}

VECTOR static void scaled(float *x, Py_ssize_t n, float scale) {
    for (Py_ssize_t i = 0; i < n; i++) x[i] *= scale;
}

/* Values are looked up one by one and stored two by two: gathers, and vectors put together from loads, are slower. */
static void table_values(const uint8_t *codes, Py_ssize_t count, Py_ssize_t block, const float *scales,
                         const float *values, float *out) {
    for (Py_ssize_t b = 0, at = 0; at < count; b++, at += block) {
        Py_ssize_t n = count - at < block ? count - at : block;
        const uint8_t *from = codes + at;
        for (Py_ssize_t i = 0; i + 1 < n; i += 2) {
            uint32_t first, second;
            memcpy(&first, values + from[i], 4);
            memcpy(&second, values + from[i + 1], 4);
#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
            uint64_t both = first | (uint64_t)second << 32;
#else
            uint64_t both = second | (uint64_t)first << 32;
#endif
            memcpy(out + at + i, &both, 8);
        }
        if (n & 1) out[at + n - 1] = values[from[n - 1]];
        scaled(out + at, n, scales[b]);
    }
}

/* Two codes a byte, the first in the upper half; blocks are even. A table has the two values of every byte. */
VECTOR static void four_bit_values(const uint8_t *codes, Py_ssize_t count, Py_ssize_t block, const float *scales,
                                   const float *values, float *out) {
    float pairs[512];
    for (int k = 0; k < 256; k++) {
        pairs[2 * k] = values[k >> 4];
        pairs[2 * k + 1] = values[k & 15];
    }
    for (Py_ssize_t b = 0, at = 0; at < count; b++, at += block) {
        Py_ssize_t n = count - at < block ? count - at : block;
        const uint8_t *from = codes + at / 2;
        float scale = scales[b];
        float *to = out + at;
        for (Py_ssize_t i = 0; i < n / 2; i++) memcpy(to + 2 * i, pairs + 2 * from[i], 8);
        if (n & 1) to[n - 1] = values[from[n / 2] >> 4];
        for (Py_ssize_t i = 0; i < n; i++) to[i] *= scale;
    }
}

/* From here on the doors: buffers in, nothing out. Sizes were checked by the caller and are checked again. */

static int check(Py_ssize_t count, Py_ssize_t block, int fits) {
    if (fits && count >= 0 && block > 0 && block <= LARGEST_BLOCK) return 1;
    PyErr_SetString(PyExc_ValueError, "buffers do not fit the block size");
    return 0;
}

#define BLOCKS(count, block) (((count) + (block) - 1) / (block))
#define FOR(i, n) for (int i = 0; i < (n); i++)

static PyObject *quantize(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer in[5]; /* source, codes, absmax, and two tables */
    int kind, is_bf16;
    Py_ssize_t block;
    if (!PyArg_ParseTuple(args, "iiny*w*w*y*y*", &kind, &is_bf16, &block, &in[0], &in[1], &in[2], &in[3], &in[4]))
        return NULL;
    Py_ssize_t count = in[0].len / (is_bf16 ? 2 : 4);
    int fits = in[2].len == 4 * (block > 0 ? BLOCKS(count, block) : 0);
    if (kind == 1)
        fits &= in[1].len == (count + 1) / 2 && in[3].len == 60 && in[4].len == 16 && block % 2 == 0 && count % 2 == 0;
    else
        fits &= in[1].len == count && (kind == 0 || (in[3].len == 1 << 17 && in[4].len == 4 << 17));
    int good = check(count, block, fits);
    if (good) {
        Py_BEGIN_ALLOW_THREADS;
        if (kind == 0) int8_blocks(in[0].buf, is_bf16, count, block, in[1].buf, in[2].buf);
        if (kind == 1) four_bit_blocks(in[0].buf, is_bf16, count, block, in[3].buf, in[4].buf, in[1].buf, in[2].buf);
        if (kind == 2) dynamic_blocks(in[0].buf, is_bf16, count, block, in[3].buf, in[4].buf, in[1].buf, in[2].buf);
        Py_END_ALLOW_THREADS;
    }
    FOR(i, 5) PyBuffer_Release(&in[i]);
    if (!good) return NULL;
    Py_RETURN_NONE;
}

static PyObject *dequantize(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer in[4]; /* codes, scales, values, out */
    int kind;
    Py_ssize_t block;
    if (!PyArg_ParseTuple(args, "iny*y*y*w*", &kind, &block, &in[0], &in[1], &in[2], &in[3])) return NULL;
    Py_ssize_t count = in[3].len / 4;
    int fits = in[1].len == 4 * (block > 0 ? BLOCKS(count, block) : 0);
    if (kind == 1)
        fits &= in[0].len == (count + 1) / 2 && in[2].len == 64 && block % 2 == 0;
    else
        fits &= in[0].len == count && (kind == 0 || in[2].len == 1024);
    int good = check(count, block, fits);
    if (good) {
        Py_BEGIN_ALLOW_THREADS;
        if (kind == 0) int8_values(in[0].buf, count, block, in[1].buf, in[3].buf);
        if (kind == 1) four_bit_values(in[0].buf, count, block, in[1].buf, in[2].buf, in[3].buf);
        if (kind == 2) table_values(in[0].buf, count, block, in[1].buf, in[2].buf, in[3].buf);
        Py_END_ALLOW_THREADS;
    }
    FOR(i, 4) PyBuffer_Release(&in[i]);
    if (!good) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"quantize", quantize, METH_VARARGS, "quantize(kind, is_bf16, block, source, codes, absmax, table, table)"},
    {"dequantize", dequantize, METH_VARARGS, "dequantize(kind, block, codes, scales, values, out)"},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernels", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&module); }
