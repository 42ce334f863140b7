/* Extensions that ask for what the region does not have: one per -D. */
#include "sbx_ext.h"

static uint64_t total;

#if defined(INITIAL_EXEC)
static __thread uint64_t own __attribute__((tls_model("initial-exec")));
#elif defined(IFUNC)
static uint64_t one(void) { return 1; }
static void *resolve(void) { return one; }
static uint64_t chosen(void) __attribute__((ifunc("resolve")));
#endif

static uint32_t add(const uint64_t *args, sbx_out *out) {
    (void)args;
#if defined(INITIAL_EXEC)
    own += args[0];
    total += own;
#elif defined(IFUNC)
    total += chosen();
#endif
    out->word = ++total;
    return SBX_EXT_OK;
}

#if defined(DATA_AS_CODE)
#define add ((sbx_handler)(void *)&total)
#endif

#if defined(ABI_VERSION)
static const sbx_decl handlers[] = {SBX_HANDLER("add", "(n: u64) -> u64", add)};
__attribute__((visibility("default"))) const sbx_manifest SBX_EXTENSION_hostile = {
    sbx_magic, ABI_VERSION, sizeof(sbx_manifest), SBX_TEXT("hostile"), 1 << 20, 0,
    0, handlers, 1, 0, 0, 0, 0};
#elif !defined(NO_MANIFEST)
SBX_HANDLERS = {SBX_HANDLER("add", "(n: u64) -> u64", add)};
#if defined(HUGE_HEAP)
SBX_EXTENSION(hostile, 1ull << 46);
#else
SBX_EXTENSION(hostile, 1 << 20);
#endif
#else
uint32_t (*const used)(const uint64_t *, sbx_out *) = add;
#endif
