// Of several processes that write to one pipe or socket, each is stopped now and then: the others go on, and what comes
// is whole and in order.
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WRITERS = 3, LEN = 3000, LATEST_MS = 5000 };

struct piece {
    unsigned writer, number, sum;
    unsigned char rest[LEN - 12];
};

static volatile unsigned long *counts;

static void write_all(int fd, unsigned writer) {
    static struct piece piece;
    while (!counts[WRITERS]) {
        piece.writer = writer;
        piece.number = counts[writer];
        piece.sum = piece.number * 31 + writer;
        memset(piece.rest, (int)piece.sum, sizeof piece.rest);
        if (write(fd, &piece, LEN) != LEN) _exit(1);
        counts[writer]++;
    }
    _exit(0);
}

static int is_right(const struct piece *piece, unsigned *next) {
    if (piece->writer >= WRITERS || piece->sum != piece->number * 31 + piece->writer) return 0;
    for (unsigned i = 0; i < sizeof piece->rest; i++)
        if (piece->rest[i] != (unsigned char)piece->sum) return 0;
    return piece->number == next[piece->writer]++;
}

static void read_all(int fd) {
    static struct piece piece;
    unsigned next[WRITERS] = {0};
    long have = 0, got;
    while ((got = read(fd, (char *)&piece + have, LEN - have)) > 0) {
        have = (have + got) % LEN;
        if (have == 0 && !is_right(&piece, next)) _exit(2);
    }
    _exit(0);
}

// 1 if it does not go on.
static int waits(unsigned writer) {
    unsigned long before = counts[writer];
    for (int ms = 0; ms < LATEST_MS; ms++) {
        if (counts[writer] != before) return 0;
        usleep(1000);
    }
    return 1;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    const char *kind = argv[1];
    int rounds = atoi(argv[2]), ends[2], left = 0, status;
    counts = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int type = strcmp(kind, "seqpacket") ? SOCK_STREAM : SOCK_SEQPACKET;
    if (strcmp(kind, "pipe") ? socketpair(AF_UNIX, type, 0, ends) : pipe(ends)) return 2;
    pid_t reader = fork(), writers[WRITERS];
    if (!reader) {
        close(ends[1]);
        read_all(ends[0]);
    }
    for (int i = 0; i < WRITERS; i++) {
        writers[i] = fork();
        if (!writers[i]) write_all(ends[1], i);
    }
    close(ends[1]);
    for (int i = 0; i < rounds && !left; i++) {
        int one = i % WRITERS;
        usleep(500 + i * 7919 % 1500);
        kill(writers[one], SIGSTOP);
        waitpid(writers[one], &status, WUNTRACED);
        for (int other = 0; other < WRITERS; other++)
            if (other != one) left += waits(other);
        kill(writers[one], SIGCONT);
    }
    counts[WRITERS] = 1;
    for (int i = 0; i < WRITERS; i++) waitpid(writers[i], &status, 0);
    waitpid(reader, &status, 0);
    printf("%s: %d wait, %x\n", kind, left, status);
}
