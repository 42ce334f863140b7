/* Prints its pid, waits for one event, then posts one to itself. */
#include <stdlib.h>
#include <unistd.h>

#include "sbx.h"

int main(void) {
    sbx_t sbx;
    uint64_t count = 0, event[4] = {1, 0, 0, 0};
    if (sbx_current(&sbx) != 0) return 10;
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("%d\n", getpid());
    if (sbx_wait(&sbx, 20000000000ull) != 1) return 11;
    const sbx_handle work = sbx_find(&sbx, "ledger.work");
    if (sbx_post(&sbx, SBX_TO_PID, (uint64_t)getpid(), work, event, &count) != SBX_OK) return 12;
    if (count != 1) return 13;
    puts("one for us, one to ourselves");
    return 0;
}
