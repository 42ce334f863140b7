/* Generations of processes, each forked from the one before, that have sites of system calls of their own: in a file that
 * all have mapped. Says how many calls each site was made by, and in how many mappings the file's code is at the end. */

#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { GENERATIONS = 30, APART = 2048, LEN = 2 * GENERATIONS * APART };

static const uint8_t site[] = {0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xc3};
static char *code;

/* getpid, three times from one site. */
static void call(int number) {
    for (int i = 0; i < 3; i++)
        if (((long (*)(void))(code + number * APART))() != getpid()) {
            printf("site %d is wrong\n", number);
            _exit(1);
        }
}

static int mappings(void) {
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    int count = 0;
    while (fgets(line, sizeof line, maps)) {
        char *from = (char *)strtoul(line, NULL, 16);
        count += from >= code && from < code + LEN;
    }
    fclose(maps);
    return count;
}

static int generation(int number) {
    int status = 0;
    if (number == GENERATIONS) return 0;
    call(2 * number);
    int child = fork();
    if (child == 0) {
        call(2 * number + 1);
        _exit(generation(number + 1));
    }
    /* The same site, in both, and one of a younger one. */
    call(2 * number + 1);
    call(2 * ((number + 2) % GENERATIONS));
    if (waitpid(child, &status, 0) != child || status != 0) return 1;
    for (int at = 0; at < 2 * GENERATIONS; at++) call(at);
    return 0;
}

int main(void) {
    static char text[LEN];
    FILE *file = tmpfile();
    for (int at = 0; at < 2 * GENERATIONS; at++) memcpy(text + at * APART, site, sizeof site);
    if (fwrite(text, LEN, 1, file) != 1 || fflush(file) != 0) return 1;
    code = mmap(NULL, LEN, PROT_READ | PROT_EXEC, MAP_PRIVATE, fileno(file), 0);
    if (code == MAP_FAILED) return 1;
    int failed = generation(0);
    printf("%d mappings\n", mappings());
    return failed;
}
