/* Calls the hello extension; the same source as a dynamic and as a static program. */
#include <sbx.h>

int main(void) {
    sbx_t sbx;
    if (sbx_current(&sbx) != 0) {
        fputs("not in a sandbox: start this with sbx-launcher run\n", stderr);
        return 1;
    }
    uint8_t text[128];
    uint64_t name[2] = {(uint64_t)(uintptr_t)"c", 1}, one[1] = {1};
    sbx_reply reply = {0, text, sizeof text, 0, NULL};
    if (sbx_call(&sbx, sbx_find(&sbx, "hello.greet"), name, &reply) != SBX_OK) return 2;
    printf("%.*s ", (int)reply.len, (char *)text);
    if (sbx_call(&sbx, sbx_find(&sbx, "hello.add"), one, &reply) != SBX_OK) return 3;
    printf("total %llu\n", (unsigned long long)reply.word);
    return 0;
}
