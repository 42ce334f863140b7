// Of several processes that write to one pipe or socket, or read from it, each is stopped now and then: the others go on,
// and what comes is whole; of one writer's, in order.
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

enum { SEVERAL = 3, LEN = 3000, LATEST_MS = 5000 };

struct piece {
    unsigned writer, number, sum;
    unsigned char rest[LEN - 12];
};

static volatile unsigned long *counts;

static void write_all(int fd, unsigned writer) {
    static struct piece piece;
    while (!counts[SEVERAL]) {
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
    if (piece->writer >= SEVERAL || piece->sum != piece->number * 31 + piece->writer) return 0;
    for (unsigned i = 0; i < sizeof piece->rest; i++)
        if (piece->rest[i] != (unsigned char)piece->sum) return 0;
    return piece->number == next[piece->writer]++;
}

// Of several readers. A record is a piece.
static void read_some(int fd, unsigned reader, int is_whole) {
    static struct piece piece;
    unsigned next[SEVERAL];
    long got;
    while ((got = read(fd, &piece, is_whole ? LEN : 300)) > 0) {
        if (is_whole) next[0] = piece.number;
        if (is_whole && (got != LEN || piece.writer || !is_right(&piece, next))) _exit(2);
        counts[reader]++;
    }
    _exit(0);
}

static void read_all(int fd) {
    static struct piece piece;
    unsigned next[SEVERAL] = {0};
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

// By whom the pieces are written that several read, which count for themselves.
static void write_many(int fd) {
    static struct piece piece;
    while (!counts[SEVERAL]) {
        piece.sum = piece.number * 31;
        memset(piece.rest, (int)piece.sum, sizeof piece.rest);
        if (write(fd, &piece, LEN) != LEN) _exit(1);
        piece.number++;
    }
    _exit(0);
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    const char *kind = argv[1];
    int rounds = atoi(argv[2]), reads = !strcmp(argv[3], "readers"), ends[2], left = 0, status, all = 0;
    counts = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int type = !strcmp(kind, "stream") ? SOCK_STREAM : !strcmp(kind, "datagram") ? SOCK_DGRAM : SOCK_SEQPACKET;
    if (strcmp(kind, "pipe") ? socketpair(AF_UNIX, type, 0, ends) : pipe(ends)) return 2;
    pid_t several[SEVERAL], other = fork();
    if (!other) {
        close(ends[!reads]);
        if (reads) write_many(ends[1]);
        read_all(ends[0]);
    }
    for (int i = 0; i < SEVERAL; i++) {
        several[i] = fork();
        if (several[i]) continue;
        close(ends[reads]);
        if (reads) read_some(ends[0], i, type != SOCK_STREAM);
        write_all(ends[1], i);
    }
    close(ends[1]);
    for (int i = 0; i < rounds && !left; i++) {
        int one = i % SEVERAL;
        usleep(500 + i * 7919 % 1500);
        kill(several[one], SIGSTOP);
        waitpid(several[one], &status, WUNTRACED);
        for (int each = 0; each < SEVERAL; each++)
            if (each != one) left += waits(each);
        kill(several[one], SIGCONT);
    }
    counts[SEVERAL] = 1;
    // Nobody tells a reader of datagrams that there will be no more.
    if (type == SOCK_DGRAM) usleep(20000);
    for (int i = 0; i < SEVERAL && type == SOCK_DGRAM; i++) kill(several[i], SIGKILL);
    for (int i = 0; i < SEVERAL; i++) {
        waitpid(several[i], &status, 0);
        if (!WIFSIGNALED(status)) all |= status;
    }
    waitpid(other, &status, 0);
    printf("%s: %d wait, %x\n", kind, left, status | all);
}
