/* Asks the shared limiter until it says no. */
#include <stdio.h>
#include <string.h>

#include "sbx.h"

int main(void) {
    sbx_t sbx;
    if (sbx_current(&sbx) != 0) {
        fprintf(stderr, "not in a sandbox: start this program with sbx-launcher run\n");
        return 1;
    }
    const char *key = "c";
    uint64_t words[3] = {(uintptr_t)key, strlen(key), 1};
    sbx_handle allow = sbx_find(&sbx, "limit.allow");
    sbx_reply reply = {0};
    int allowed = 0;
    while (sbx_call(&sbx, allow, words, &reply) == SBX_OK && reply.word) allowed++;
    printf("C: %d allowed at once\n", allowed);
    return 0;
}
