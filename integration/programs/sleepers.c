// Readers that go to sleep in the very moment in which something is written to their connection, alone and beside
// others that read, poll or wait in an epoll instance: every byte comes once, and to one reader in its order.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { PIECES = 4000, LARGEST = 3000 };

static int ends[2];
static unsigned first_seed;
static atomic_long counts[256];
static atomic_int out_of_order;

static unsigned char byte_at(long position) {
    return (unsigned long)position * 0x9e3779b97f4a7c15ul >> 56;
}

static void pause_ns(long ns) {
    struct timespec begun, now;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    do clock_gettime(CLOCK_MONOTONIC, &now);
    while ((now.tv_sec - begun.tv_sec) * 1000000000 + now.tv_nsec - begun.tv_nsec < ns);
}

static void *write_all(void *unused) {
    static unsigned char bytes[LARGEST];
    unsigned seed = first_seed;
    long position = 0;
    (void)unused;
    for (int piece = 0; piece < PIECES; piece++) {
        int len = 1 + rand_r(&seed) % (rand_r(&seed) % 20 ? 64 : LARGEST);
        for (int at = 0; at < len; at++) bytes[at] = byte_at(position + at);
        for (int sent = 0; sent < len;) {
            long more = write(ends[0], bytes + sent, len - sent);
            if (more <= 0) exit(3);
            sent += more;
        }
        position += len;
        // Up to twice as long as a reader looks, and now and then so long that it looks no more.
        if (rand_r(&seed) % 100 == 0) usleep(200 + rand_r(&seed) % 300);
        else if (rand_r(&seed) % 4) pause_ns(rand_r(&seed) % 60000);
    }
    shutdown(ends[0], SHUT_WR);
    return (void *)position;
}

static long receive(int fd, unsigned char *bytes, int len, int way, int flags) {
    struct iovec pieces[2] = {{bytes, len / 2}, {bytes + len / 2, len - len / 2}};
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 2};
    switch (flags ? 1 + way % 2 * 2 : way) {
    case 0: return read(fd, bytes, len);
    case 1: return recv(fd, bytes, len, flags);
    case 2: return readv(fd, pieces, 2);
    default: return recvmsg(fd, &message, flags);
    }
}

static void count(const unsigned char *bytes, long len) {
    for (long at = 0; at < len; at++) counts[bytes[at]]++;
}

static void *read_in_order(void *unused) {
    static unsigned char bytes[LARGEST];
    unsigned seed = first_seed + 1;
    long position = 0, got;
    (void)unused;
    while ((got = receive(ends[1], bytes, 2 + rand_r(&seed) % (LARGEST - 1), rand_r(&seed) % 4, 0)) > 0) {
        count(bytes, got);
        for (long at = 0; at < got; at++) out_of_order |= bytes[at] != byte_at(position + at);
        position += got;
    }
    return NULL;
}

static void *read_any(void *unused) {
    unsigned char bytes[100];
    unsigned seed = first_seed + 2;
    long got;
    (void)unused;
    while ((got = receive(ends[1], bytes, sizeof bytes, rand_r(&seed) % 4, 0)) > 0) count(bytes, got);
    return NULL;
}

static void *poll_and_read(void *unused) {
    unsigned char bytes[100];
    unsigned seed = first_seed + 3;
    struct pollfd one = {.fd = ends[1], .events = POLLIN};
    (void)unused;
    for (;;) {
        poll(&one, 1, -1);
        long got = receive(ends[1], bytes, sizeof bytes, rand_r(&seed) % 4, MSG_DONTWAIT);
        if (got == 0) return NULL;
        if (got > 0) count(bytes, got);
    }
}

static void *wait_and_read(void *unused) {
    unsigned char bytes[100];
    struct epoll_event one = {.events = EPOLLIN | EPOLLET | EPOLLRDHUP};
    int epoll = epoll_create1(0);
    (void)unused;
    epoll_ctl(epoll, EPOLL_CTL_ADD, ends[1], &one);
    for (long got = 1; got != 0;) {
        epoll_wait(epoll, &one, 1, -1);
        while ((got = recv(ends[1], bytes, sizeof bytes, MSG_DONTWAIT)) > 0) count(bytes, got);
    }
    close(epoll);
    return NULL;
}

static void connect_ends(int is_unix) {
    if (is_unix) {
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) exit(2);
        return;
    }
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof name;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)&name, len) || listen(listener, 1)) exit(2);
    getsockname(listener, (void *)&name, &len);
    ends[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(ends[0], (void *)&name, len)) exit(2);
    ends[1] = accept(listener, NULL, NULL);
    close(listener);
}

int main(int argc, char **argv) {
    void *(*readers[])(void *) = {NULL, read_any, poll_and_read, wait_and_read};
    const char *names[] = {"alone", "beside another", "beside one that polls", "beside an epoll instance"};
    first_seed = argc > 1 ? atoi(argv[1]) : 1;
    for (int is_unix = 0; is_unix < 2; is_unix++)
        for (int other = 0; other < 4; other++) {
            pthread_t writer, one, two;
            void *sent;
            memset(counts, 0, sizeof counts);
            out_of_order = 0;
            connect_ends(is_unix);
            pthread_create(&one, NULL, other ? read_any : read_in_order, NULL);
            if (other) pthread_create(&two, NULL, readers[other], NULL);
            pthread_create(&writer, NULL, write_all, NULL);
            pthread_join(writer, &sent);
            pthread_join(one, NULL);
            if (other) pthread_join(two, NULL);
            for (long position = 0; position < (long)sent; position++) counts[byte_at(position)]--;
            int is_right = !out_of_order;
            for (int value = 0; value < 256; value++) is_right &= counts[value] == 0;
            printf("%s, %s: %s\n", is_unix ? "unix" : "tcp", names[other], is_right ? "all" : "not all");
            close(ends[0]);
            close(ends[1]);
        }
    return 0;
}
