/* Writing an extension in C: a freestanding shared object, without a C library.
 *
 *     #include "sbx_ext.h"
 *
 *     static uint64_t total;
 *
 *     // add(n: u64) -> u64
 *     static uint32_t add(const uint64_t *args, sbx_out *out) {
 *         out->word = __atomic_add_fetch(&total, args[0], __ATOMIC_RELAXED);
 *         return SBX_EXT_OK;
 *     }
 *
 *     SBX_HANDLERS = {
 *         SBX_HANDLER("add", "(n: u64) -> u64", add),
 *     };
 *     SBX_EXTENSION(sum, 1 << 20);
 *
 * built by
 *
 *     cc -O2 -shared -fPIC -nostdlib -ffreestanding -fno-stack-protector -I ext-api/c -o libsum.so sum.c
 *
 * A handler runs in the process and thread of its caller. Its state is shared by all processes, so
 * that every change has to be right at every instruction: use atomics. The types of a signature are
 * u64, i64, f64 and bool (one word each), bytes and str (two words: address and length). What a
 * handler may call beside its own code is what libos offers: malloc, free, memcpy, ... (see the list in
 * libos/image/src/exports.rs); declare it yourself.
 */
#ifndef SBX_EXT_H
#define SBX_EXT_H

#include <stddef.h>
#include <stdint.h>

/* What a handler returns. FAILED: the bytes of the reply are the message. */
enum { SBX_EXT_OK = 0, SBX_EXT_NONE = 1, SBX_EXT_FAILED = 2, SBX_EXT_BAD_ARGS = 20 };

/* Where the result goes: a number into word; bytes into buf, of which there are cap, and their number
 * into len. A result that is longer goes into a block of malloc, and its address into spill. */
typedef struct {
    uint64_t word;
    uint8_t *buf;
    size_t cap;
    size_t len;
    uint8_t *spill;
} sbx_out;

typedef uint32_t (*sbx_handler)(const uint64_t *args, sbx_out *out);
/* Configuration text and its length, libos's table (ext-api/src/abi.rs), message on failure. */
typedef uint32_t (*sbx_init)(const char *config, size_t len, const void *runtime, sbx_out *out);

typedef struct {
    const char *at;
    size_t len;
} sbx_text;

typedef struct {
    sbx_text name, signature;
    sbx_handler code;
    uint64_t budget_ns; /* CPU time per call; 0: the default */
    uint64_t hook, hook_value; const uint64_t *hook_set; /* when it runs by itself; 0: never. See HandlerDecl in abi.rs */
} sbx_decl;

typedef struct {
    uint64_t magic;
    uint32_t abi_version, size;
    sbx_text name;
    uint64_t heap_len, budget_ns;
    sbx_init init;
    const sbx_decl *handlers;
    size_t handler_count;
    uint64_t flags;
    sbx_handler save;    /* writes the state into its reply, or 0; see Manifest in abi.rs */
    const void *upgrade; /* an UpgradeFn, or 0 */
    uint64_t state_version;
} sbx_manifest;

#define SBX_TEXT(text) {text, sizeof(text) - 1}
#define SBX_HANDLERS static const sbx_decl sbx_handlers[]
#define SBX_HANDLER(name, signature, code) {SBX_TEXT(name), SBX_TEXT(signature), code, 0, 0, 0, 0}

/* The extension: its name, its heap in bytes, and an init function. After SBX_HANDLERS. */
#define SBX_EXTENSION_WITH_INIT(NAME, HEAP, INIT)                                                  \
    __attribute__((visibility("default"))) const sbx_manifest SBX_EXTENSION_##NAME = {             \
        sbx_magic, 6, sizeof(sbx_manifest), SBX_TEXT(#NAME), HEAP, 0,                              \
        INIT, sbx_handlers, sizeof sbx_handlers / sizeof sbx_handlers[0], 0, 0, 0, 0}
#define SBX_EXTENSION(NAME, HEAP) SBX_EXTENSION_WITH_INIT(NAME, HEAP, 0)

/* "SBXextn1", lowest byte first. */
#define sbx_magic 0x316e747865584253ull

#endif
