/* Reaches for the region by every call on address ranges, more than once from each site: all must be
 * refused, and none may harm it. */

#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int harmed = 0;

static void refused(const char *what, int done) {
    if (done) printf("%s is allowed\n", what), harmed = 1;
    else if (errno != EPERM && errno != EACCES) printf("%s: %s\n", what, strerror(errno)), harmed = 1;
}

int main(void) {
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    unsigned long start[64], end, count = 0;
    while (count < 64 && fgets(line, sizeof line, maps))
        if (strstr(line, "memfd:sbx") && sscanf(line, "%lx-%lx", &start[count], &end) == 2) count++;
    fclose(maps);
    if (count < 3) return printf("%lu mappings\n", count), 2;
    void *other = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int turn = 0; turn < 3; turn++) {
        for (unsigned long i = 0; i < count; i++) {
            char *at = (char *)start[i];
            refused("munmap", munmap(at, 4096) == 0);
            refused("munmap from before", munmap(at - 4096, 8192) == 0);
            refused("mprotect", mprotect(at, 4096, PROT_READ | PROT_WRITE | PROT_EXEC) == 0);
            refused("mmap", mmap(at, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
            refused("madvise", madvise(at, 4096, MADV_REMOVE) == 0);
            refused("mremap", mremap(at, 4096, 8192, MREMAP_MAYMOVE) != MAP_FAILED);
            refused("mremap to it", mremap(other, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, at) != MAP_FAILED);
        }
        /* What is the program's own it may do. */
        if (mprotect(other, 4096, PROT_READ | PROT_WRITE) || madvise(other, 4096, MADV_DONTNEED)) harmed = 1;
    }
    if (getppid() <= 0) harmed = 1;
    printf("%s\n", harmed ? "harmed" : "all refused");
    return harmed;
}
