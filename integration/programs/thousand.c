/* An extension with a thousand handlers: h1000 to h1999, each of which returns its number. */
#include "sbx_ext.h"

#define TEN(X, n) X(n##0) X(n##1) X(n##2) X(n##3) X(n##4) X(n##5) X(n##6) X(n##7) X(n##8) X(n##9)
#define HUNDRED(X, n)                                                                              \
    TEN(X, n##0) TEN(X, n##1) TEN(X, n##2) TEN(X, n##3) TEN(X, n##4)                               \
    TEN(X, n##5) TEN(X, n##6) TEN(X, n##7) TEN(X, n##8) TEN(X, n##9)
#define THOUSAND(X)                                                                                \
    HUNDRED(X, 10) HUNDRED(X, 11) HUNDRED(X, 12) HUNDRED(X, 13) HUNDRED(X, 14)                     \
    HUNDRED(X, 15) HUNDRED(X, 16) HUNDRED(X, 17) HUNDRED(X, 18) HUNDRED(X, 19)

#define CODE(n)                                                                                    \
    static uint32_t h##n(const uint64_t *args, sbx_out *out) {                                     \
        (void)args;                                                                                \
        out->word = n;                                                                             \
        return SBX_EXT_OK;                                                                         \
    }
#define ENTRY(n) SBX_HANDLER("h" #n, "() -> u64", h##n),

THOUSAND(CODE)

SBX_HANDLERS = {THOUSAND(ENTRY)};
SBX_EXTENSION(thousand, 1 << 20);
