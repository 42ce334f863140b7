// Several processes send records on one end of a pair, several receive on the other, each in a way of its own.
// Every record has to come once, whole, and from each sender in its order; says how many there were.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SENDERS = 3, RECEIVERS = 3, LEN = 20000, COUNT_MAX = 1 << 20 };

struct head {
    uint32_t sender, number, len, sum;
};
// How often each record has come, and how many were empty.
static unsigned char *seen;
static uint32_t *empty;
static uint64_t state;

static unsigned draw(unsigned below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (unsigned)((state >> 20) % below);
}

static void die(const char *what) {
    perror(what);
    _exit(2);
}

static uint32_t sum_of(const unsigned char *bytes, uint32_t len) {
    uint32_t sum = 1;
    for (uint32_t i = 0; i < len; i++) sum = sum * 31 + bytes[i];
    return sum;
}

static void pause_now_and_then(void) {
    if (draw(40) == 0) usleep(draw(300));
    else if (draw(20) == 0) for (volatile unsigned i = draw(20000); i; i--) {}
}

static void send_all(int fd, uint32_t sender, uint32_t count) {
    static unsigned char bytes[LEN];
    for (uint32_t i = 0; i < count; i++) {
        if (draw(20) == 0) {
            if (send(fd, bytes, 0, 0) != 0) die("send nothing");
            __atomic_add_fetch(&empty[0], 1, __ATOMIC_RELAXED);
        }
        uint32_t len = sizeof(struct head) + (draw(10) ? draw(200) : draw(LEN - sizeof(struct head)));
        for (uint32_t at = sizeof(struct head); at < len; at++) bytes[at] = (unsigned char)draw(256);
        struct head head = {sender, i, len, sum_of(bytes + sizeof head, len - sizeof head)};
        memcpy(bytes, &head, sizeof head);
        struct iovec pieces[2] = {{bytes, len / 2}, {bytes + len / 2, len - len / 2}};
        long sent = draw(3) ? send(fd, bytes, len, 0) : writev(fd, pieces, 2);
        if (sent != len) die("send");
        pause_now_and_then();
    }
}

static void check(const unsigned char *bytes, long len, int64_t last[SENDERS]) {
    if (len == 0) {
        __atomic_add_fetch(&empty[1], 1, __ATOMIC_RELAXED);
        return;
    }
    struct head head;
    memcpy(&head, bytes, sizeof head);
    if (len < (long)sizeof head || head.len != len || head.sender >= SENDERS || head.number >= COUNT_MAX / SENDERS ||
        head.sum != sum_of(bytes + sizeof head, len - sizeof head)) {
        fprintf(stderr, "no such record: %ld bytes\n", len);
        _exit(3);
    }
    if (head.number <= last[head.sender]) {
        fprintf(stderr, "%u of %u came after %ld\n", head.number, head.sender, (long)last[head.sender]);
        _exit(4);
    }
    last[head.sender] = head.number;
    seen[head.sender * (COUNT_MAX / SENDERS) + head.number]++;
}

// Until a record says that it is the last.
static void receive_all(int fd, int how) {
    static unsigned char bytes[2][LEN];
    int64_t last[SENDERS] = {-1, -1, -1};
    int epoll = -1;
    if (how == 2) {
        epoll = epoll_create1(0);
        struct epoll_event event = {.events = EPOLLIN};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
    }
    for (;;) {
        struct pollfd one = {.fd = fd, .events = POLLIN};
        struct epoll_event event;
        struct mmsghdr many[2] = {};
        struct iovec pieces[2] = {{bytes[0], LEN}, {bytes[1], LEN}};
        for (int i = 0; i < 2; i++) many[i].msg_hdr = (struct msghdr){.msg_iov = pieces + i, .msg_iovlen = 1};
        if (how == 1 && poll(&one, 1, -1) < 0) die("poll");
        if (how == 2 && epoll_wait(epoll, &event, 1, -1) < 0) die("epoll_wait");
        if (draw(10) == 0 && recv(fd, bytes[0], LEN, MSG_PEEK | MSG_DONTWAIT) < 0 && errno != EAGAIN) die("peek");
        int got = recvmmsg(fd, many, 2, how ? MSG_DONTWAIT : MSG_WAITFORONE, NULL);
        if (got < 0 && errno == EAGAIN) continue;
        if (got < 0) die("recvmmsg");
        for (int i = 0; i < got; i++) {
            if (many[i].msg_len == 3) _exit(0);
            check(bytes[i], many[i].msg_len, last);
        }
        pause_now_and_then();
    }
}

static void wait_for(pid_t child) {
    int status;
    if (waitpid(child, &status, 0) < 0 || status != 0) {
        fprintf(stderr, "status %x\n", status);
        exit(1);
    }
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    int type = strcmp(argv[1], "datagram") ? SOCK_SEQPACKET : SOCK_DGRAM, ends[2];
    uint32_t count = strtoul(argv[3], NULL, 10);
    state = strtoull(argv[2], NULL, 10) * 0x9e3779b97f4a7c15 + 1;
    seen = mmap(NULL, COUNT_MAX + 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (seen == MAP_FAILED) die("mmap");
    empty = (uint32_t *)(seen + COUNT_MAX);
    if (socketpair(AF_UNIX, type, 0, ends)) die("socketpair");
    pid_t senders[SENDERS], receivers[RECEIVERS];
    for (int i = 0; i < RECEIVERS; i++) {
        state += i + 1;
        if ((receivers[i] = fork()) == 0) receive_all(ends[1], i);
    }
    for (int i = 0; i < SENDERS; i++) {
        state += i + 10;
        if ((senders[i] = fork()) == 0) {
            send_all(ends[0], i, count);
            _exit(0);
        }
    }
    for (int i = 0; i < SENDERS; i++) wait_for(senders[i]);
    for (int i = 0; i < RECEIVERS; i++) {
        if (send(ends[0], "end", 3, 0) != 3) die("send");
        // So that nobody gets two of these.
        usleep(20000);
    }
    for (int i = 0; i < RECEIVERS; i++) {
        int status;
        for (int tries = 0; waitpid(receivers[i], &status, WNOHANG) == 0; tries++) {
            if (tries > 1000) {
                fprintf(stderr, "receiver %d does not end\n", i);
                exit(6);
            }
            usleep(10000);
        }
        if (status) {
            fprintf(stderr, "receiver %d: %x\n", i, status);
            exit(1);
        }
    }
    for (uint32_t sender = 0; sender < SENDERS; sender++)
        for (uint32_t i = 0; i < count; i++)
            if (seen[sender * (COUNT_MAX / SENDERS) + i] != 1) {
                fprintf(stderr, "%u of %u came %u times\n", i, sender, seen[sender * (COUNT_MAX / SENDERS) + i]);
                exit(7);
            }
    if (empty[0] != empty[1]) {
        fprintf(stderr, "%u empty ones sent, %u came\n", empty[0], empty[1]);
        exit(8);
    }
    printf("each once\n");
    return 0;
}
