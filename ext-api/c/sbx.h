/* Calling extensions from a C program in a sandbox. C99, header only, for any libc.
 *
 *     sbx_t sbx;
 *     if (sbx_current(&sbx) != 0) { ... not in a sandbox ... }
 *     sbx_handle add = sbx_find(&sbx, "hello.add");
 *     uint64_t words[1] = { 5 };
 *     sbx_reply reply = { 0 };
 *     if (sbx_call(&sbx, add, words, &reply) == SBX_OK) printf("%llu\n", reply.word);
 *
 * An integer is one word, a byte string two: address and length.
 */
#ifndef SBX_H
#define SBX_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define SBX_ABI_VERSION 6u
/* How an event is posted; SBX_URGENT is added to one of the others. */
enum { SBX_TO_PEER = 0, SBX_TO_PID = 1, SBX_TO_ANY = 2, SBX_TO_ALL = 3, SBX_URGENT = 256 };
enum { SBX_OK = 0, SBX_NONE = 1, SBX_FAILED = 2, SBX_STALE = 16, SBX_PANICKED = 32 };

typedef uint64_t sbx_handle;

typedef struct {
    uint64_t word;
    uint8_t *buf;
    size_t cap;
    size_t len;
    uint8_t *spill; /* not null: the result is here instead; give it back with sbx_release */
} sbx_reply;

typedef uint32_t (*sbx_call_fn)(sbx_handle, const uint64_t *, sbx_reply *);
typedef sbx_handle (*sbx_find_fn)(const char *, size_t);
typedef void (*sbx_release_fn)(uint8_t *);

typedef struct {
    sbx_call_fn call;
    sbx_find_fn find;
    sbx_release_fn release;
    uint64_t (*wait)(uint64_t timeout_ns);
} sbx_t;

/* 0, or -1 if this process is in no sandbox, or -2 if the sandbox has another ABI. */
static inline int sbx_current(sbx_t *sbx) {
    /* The start of the superblock; see ext-api/src/abi.rs. */
    struct superblock {
        uint64_t magic;
        uint32_t abi_version, size;
        uint64_t base, len, sandbox_id, flags;
        uint32_t supervisor_pid, map_count;
        uint64_t call, find, release, others[5];
        char name[32];
        uint64_t maps[48][4], handlers, extensions, wait;
    };
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    const struct superblock *block = NULL;
    if (!maps) return -1;
    while (!block && fgets(line, sizeof line, maps)) {
        unsigned long long start;
        if (strstr(line, "/memfd:sbx-control (deleted)") && sscanf(line, "%llx-", &start) == 1)
            block = (const struct superblock *)(uintptr_t)start;
    }
    fclose(maps);
    if (!block) return -1;
    if (memcmp(&block->magic, "SBXsuper", 8) || block->abi_version != SBX_ABI_VERSION) return -2;
    sbx->call = (sbx_call_fn)(uintptr_t)block->call;
    sbx->find = (sbx_find_fn)(uintptr_t)block->find;
    sbx->release = (sbx_release_fn)(uintptr_t)block->release;
    sbx->wait = (uint64_t (*)(uint64_t))(uintptr_t)block->wait;
    return 0;
}

/* The handler "extension.handler", or 0. */
static inline sbx_handle sbx_find(const sbx_t *sbx, const char *name) {
    return sbx->find(name, strlen(name));
}

static inline uint32_t sbx_call(const sbx_t *sbx, sbx_handle handle, const uint64_t *words,
                                sbx_reply *reply) {
    return sbx->call(handle, words, reply);
}

/* Have a handler run in other processes, with up to four numbers. *count: how many have the event. */
static inline uint32_t sbx_post(const sbx_t *sbx, uint64_t how, uint64_t to, sbx_handle handler,
                                const uint64_t event[4], uint64_t *count) {
    const uint64_t words[7] = {how, to, handler, event[0], event[1], event[2], event[3]};
    sbx_reply reply = {0};
    const uint32_t status = sbx->call((sbx_handle)1 << 32 | 1, words, &reply);
    if (count) *count = reply.word;
    return status;
}

/* Wait for events to this process; how many were delivered. */
static inline uint64_t sbx_wait(const sbx_t *sbx, uint64_t timeout_ns) {
    return sbx->wait(timeout_ns);
}

static inline void sbx_release(const sbx_t *sbx, sbx_reply *reply) {
    if (reply->spill) sbx->release(reply->spill);
    reply->spill = NULL;
}

#endif
