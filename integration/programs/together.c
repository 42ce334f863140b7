// Several processes write lines in pieces to one stream, faster than it is read: no line is broken apart by another.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WRITERS = 8, PIECES = 64, LINE_MAX = 4096, IN = 1 << 16 };

struct head {
    unsigned writer, len, number, sum;
};

static unsigned state;

static unsigned draw(unsigned below) {
    state = state * 1664525 + 1013904223;
    return (state >> 8) % below;
}

static void write_lines(int fd, unsigned writer, unsigned lines) {
    static char line[LINE_MAX];
    struct iovec pieces[PIECES];
    for (unsigned number = 0; number < lines; number++) {
        unsigned len = sizeof(struct head) + draw(LINE_MAX - sizeof(struct head)), piece = len / PIECES;
        memset(line, 'a' + writer, len);
        *(struct head *)line = (struct head){writer, len, number, writer + len + number};
        for (int i = 0; i < PIECES; i++)
            pieces[i] = (struct iovec){line + i * piece, i + 1 < PIECES ? piece : len - i * piece};
        if (writev(fd, pieces, PIECES) != (long)len) _exit(1);
    }
    _exit(0);
}

static int is_right(const char *line, unsigned *next) {
    const struct head *head = (const void *)line;
    for (unsigned i = sizeof *head; i < head->len; i++)
        if (line[i] != (char)('a' + head->writer)) return 0;
    return head->number == next[head->writer]++;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    unsigned lines = atoi(argv[2]), next[WRITERS] = {0}, all = 0;
    state = atoi(argv[1]);
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) return 2;
    // What is under way is little, so that writers often wait.
    int little = 16384;
    if (setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &little, sizeof little)) return 2;
    for (unsigned i = 0; i < WRITERS; i++) {
        draw(2);
        if (fork() == 0) write_lines(ends[1], i, lines);
    }
    close(ends[1]);
    static char in[IN + LINE_MAX];
    long have = 0, got;
    while ((got = read(ends[0], in + have, 1 + draw(IN / 2))) > 0) {
        long at = 0;
        have += got;
        if (draw(16) == 0) usleep(200);
        while (have - at >= (long)sizeof(struct head)) {
            struct head *head = (void *)(in + at);
            if (head->writer >= WRITERS || head->sum != head->writer + head->len + head->number) {
                printf("a broken line\n");
                return 1;
            }
            if (have - at < (long)head->len) break;
            if (!is_right(in + at, next)) {
                printf("a wrong line\n");
                return 1;
            }
            at += head->len;
            all++;
        }
        memmove(in, in + at, have - at);
        have -= at;
    }
    printf("%s\n", all == WRITERS * lines && have == 0 ? "all" : "not all");
}
