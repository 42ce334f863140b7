/* Reads what the Rust program stored, and stores something of its own. */
#include <stdio.h>
#include <string.h>

#include "sbx.h"

int main(void) {
    sbx_t sbx;
    uint8_t buffer[256];
    if (sbx_current(&sbx) != 0) {
        fprintf(stderr, "not in a sandbox: start this program with sbx-launcher run\n");
        return 1;
    }
    const char *key = "from-rust", *own = "from-c", *value = "a value that C stored";
    uint64_t get[2] = {(uintptr_t)key, strlen(key)};
    sbx_reply reply = {.buf = buffer, .cap = sizeof buffer};
    uint32_t status = sbx_call(&sbx, sbx_find(&sbx, "kv.get"), get, &reply);
    if (status == SBX_OK)
        printf("from rust: %.*s\n", (int)reply.len, (const char *)(reply.spill ? reply.spill : reply.buf));
    else
        printf("from rust: nothing (status %u)\n", status);
    sbx_release(&sbx, &reply);
    uint64_t put[5] = {(uintptr_t)own, strlen(own), (uintptr_t)value, strlen(value), 0};
    sbx_reply stored = {.buf = buffer, .cap = sizeof buffer};
    return sbx_call(&sbx, sbx_find(&sbx, "kv.put"), put, &stored) == SBX_OK ? 0 : 1;
}
