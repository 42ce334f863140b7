/* A freestanding extension in C. */
#include "sbx_ext.h"

void *malloc(size_t len);
void *memcpy(void *to, const void *from, size_t len);

static uint64_t total, start;

static uint32_t init(const char *config, size_t len, const void *runtime, sbx_out *out) {
    (void)runtime, (void)out;
    start = len == 1 ? (uint64_t)(config[0] - '0') : 0;
    total = start;
    return SBX_EXT_OK;
}

static uint32_t add(const uint64_t *args, sbx_out *out) {
    out->word = __atomic_add_fetch(&total, args[0], __ATOMIC_RELAXED);
    return SBX_EXT_OK;
}

static uint32_t twice(const uint64_t *args, sbx_out *out) {
    const uint8_t *from = (const uint8_t *)args[0];
    size_t len = args[1];
    uint8_t *to = out->buf;
    if (2 * len > out->cap) {
        to = out->spill = malloc(2 * len);
        if (!to) return SBX_EXT_FAILED;
    }
    memcpy(to, from, len);
    memcpy(to + len, from, len);
    out->len = 2 * len;
    return len ? SBX_EXT_OK : SBX_EXT_NONE;
}

SBX_HANDLERS = {
    SBX_HANDLER("add", "(n: u64) -> u64", add),
    SBX_HANDLER("twice", "(data: bytes) -> option<bytes>", twice),
};
SBX_EXTENSION_WITH_INIT(cext, 1 << 20, init);
