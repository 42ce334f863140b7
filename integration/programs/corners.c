// Corners of what calls on connected sockets and pipes mean, one after the other, on each kind of them; prints what each
// came to. Bytes that are sent while nobody sleeps lie in a ring, if there is one; those with MSG_DONTROUTE or
// descriptors, and those for a thread that sleeps, do not.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

enum kind { TCP, TCP6, NAMED, STREAM, SEQPACKET, DATAGRAM, KINDS };
static const char *names[] = {"tcp", "tcp6", "named", "stream", "seqpacket", "datagram"};
static enum kind kind;
static char in[256];

static long told(long result) { return result < 0 ? -errno : result; }
static int is_tcp(void) { return kind == TCP || kind == TCP6; }
static int has_records(void) { return kind == SEQPACKET || kind == DATAGRAM; }

#define SAY(...) (printf("%s ", names[kind]), printf(__VA_ARGS__), printf("\n"), fflush(stdout))

static socklen_t listening(int *listener, struct sockaddr_storage *address) {
    int families[] = {AF_INET, AF_INET6, AF_UNIX};
    struct sockaddr_in6 *six = (void *)address;
    struct sockaddr_in *four = (void *)address;
    memset(address, 0, sizeof *address);
    address->ss_family = families[kind];
    socklen_t len = kind == TCP ? sizeof *four : kind == TCP6 ? sizeof *six : sizeof(sa_family_t);
    if (kind == TCP) four->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (kind == TCP6) six->sin6_addr = in6addr_loopback;
    *listener = socket(families[kind], SOCK_STREAM, 0);
    if (bind(*listener, (void *)address, len) || listen(*listener, 5)) perror("listen");
    len = sizeof *address;
    getsockname(*listener, (void *)address, &len);
    return len;
}

// `before` is called for the first one when it is not connected yet.
static void open_pair(int pair[2], void (*before)(int)) {
    if (kind >= STREAM) {
        int types[] = {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM};
        socketpair(AF_UNIX, types[kind - STREAM], 0, pair);
        if (before) before(pair[0]);
        return;
    }
    int listener, on = 1;
    struct sockaddr_storage address;
    socklen_t len = listening(&listener, &address);
    pair[0] = socket(address.ss_family, SOCK_STREAM, 0);
    if (before) before(pair[0]);
    if (connect(pair[0], (void *)&address, len)) perror("connect");
    pair[1] = accept(listener, NULL, NULL);
    close(listener);
    for (int i = 0; i < 2 && is_tcp(); i++) setsockopt(pair[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static void close_pair(int pair[2]) {
    close(pair[0]);
    close(pair[1]);
}

static long send_descriptor(int by, const char *bytes, int fd) {
    char control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec piece = {(void *)bytes, strlen(bytes)};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    return told(sendmsg(by, &message, 0));
}

static void receive(const char *what, int fd, size_t len, int flags) {
    char control[256];
    struct iovec pieces[2] = {{in, len / 3}, {in + len / 3, len - len / 3}};
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 2, .msg_control = control, .msg_controllen = sizeof control};
    memset(in, 0, sizeof in);
    long got = told(recvmsg(fd, &message, flags));
    printf("%s %s: %ld '%.*s'", names[kind], what, got, (int)(got > 0 ? got : 0), in);
    if (got >= 0) printf(" %x", message.msg_flags);
    for (struct cmsghdr *head = got < 0 ? NULL : CMSG_FIRSTHDR(&message); head; head = CMSG_NXTHDR(&message, head)) {
        int passed;
        memcpy(&passed, CMSG_DATA(head), sizeof passed);
        printf(" with %d %d", head->cmsg_level, head->cmsg_type);
        if (head->cmsg_type != SCM_RIGHTS) continue;
        printf(fcntl(passed, F_GETFD) < 0 ? " closed" : " open");
        close(passed);
    }
    printf("\n");
    fflush(stdout);
}

static void descriptors_behind_bytes(void) {
    int pair[2], lens[] = {100, 6, 3};
    for (int i = 0; i < 3; i++)
        for (int all = 0; all < 2; all++) {
            open_pair(pair, NULL);
            send(pair[0], "hello", 5, 0);
            send_descriptor(pair[0], "x", 1);
            send_descriptor(pair[0], "y", pair[0]);
            send(pair[0], "tail", 4, 0);
            for (int j = 0; j < 5; j++) receive("descriptors", pair[1], lens[i], all ? MSG_WAITALL | MSG_DONTWAIT : MSG_DONTWAIT);
            close_pair(pair);
        }
    open_pair(pair, NULL);
    send(pair[0], "hello", 5, 0);
    send_descriptor(pair[0], "x", 1);
    send(pair[0], "tail", 4, 0);
    receive("look at descriptors", pair[1], 100, MSG_PEEK);
    SAY("read: %ld", told(read(pair[1], in, 100)));
    SAY("read: %ld", told(read(pair[1], in, 100)));
    close_pair(pair);
}

struct later { int fd; int shut; };

static void *send_later(void *which) {
    struct later *later = which;
    usleep(20000);
    if (later->shut) return shutdown(later->fd, SHUT_RD), NULL;
    send(later->fd, "abc", 3, 0);
    usleep(20000);
    send(later->fd, "defgh", 5, 0);
    return NULL;
}

static void all_is_waited_for(void) {
    int pair[2], flags[] = {MSG_WAITALL, MSG_WAITALL | MSG_PEEK};
    for (int i = 0; i < 2; i++)
        for (int is_first = 0; is_first < 2; is_first++) {
            pthread_t thread;
            open_pair(pair, NULL);
            struct later later = {.fd = pair[0]};
            if (is_first) send(pair[0], "first", 5, 0);
            pthread_create(&thread, NULL, send_later, &later);
            receive("all", pair[1], is_first ? 13 : 8, flags[i]);
            pthread_join(thread, NULL);
            receive("rest of all", pair[1], 20, MSG_DONTWAIT);
            send(pair[0], "more", 4, 0);
            receive("more than all", pair[1], 20, MSG_DONTWAIT);
            close_pair(pair);
        }
    // An end, and no more time.
    open_pair(pair, NULL);
    struct timeval time = {.tv_usec = 30000};
    setsockopt(pair[1], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    send(pair[0], "abc", 3, 0);
    receive("all in time", pair[1], 8, MSG_WAITALL);
    receive("nothing in time", pair[1], 8, MSG_WAITALL);
    send(pair[0], "abc", 3, 0);
    shutdown(pair[0], SHUT_WR);
    receive("all until the end", pair[1], 8, MSG_WAITALL);
    close_pair(pair);
}

static void looked_at_and_cut(void) {
    int pair[2];
    open_pair(pair, NULL);
    send(pair[0], "hello", 5, 0);
    send(pair[0], "more", 4, MSG_DONTROUTE);
    usleep(2000);
    receive("look", pair[1], 100, MSG_PEEK);
    receive("look at 7", pair[1], 7, MSG_PEEK);
    receive("look at 7 of 9", pair[1], 7, MSG_PEEK | MSG_WAITALL);
    receive("both", pair[1], 100, 0);
    send(pair[0], "hello", 5, 0);
    receive("cut", pair[1], 3, MSG_TRUNC);
    receive("look and cut", pair[1], 3, MSG_TRUNC | MSG_PEEK | MSG_DONTWAIT);
    receive("not cut", pair[1], 10, MSG_DONTWAIT);
    close_pair(pair);
}

static void look(const char *what, int fd) {
    struct pollfd one = {.fd = fd, .events = POLLIN | POLLOUT | POLLPRI | POLLRDHUP};
    int polled = poll(&one, 1, 0), epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    event.events = 0;
    int waited = epoll_wait(epoll, &event, 1, 0);
    close(epoll);
    fd_set sets[3];
    memset(sets, 0, sizeof sets);
    for (int i = 0; i < 3; i++) FD_SET(fd, sets + i);
    struct timeval none = {0};
    int selected = select(fd + 1, sets, sets + 1, sets + 2, &none);
    SAY("%s: %d %x, %d %x, %d %d%d%d", what, polled, one.revents, waited, event.events, selected,
        !!FD_ISSET(fd, sets), !!FD_ISSET(fd, sets + 1), !!FD_ISSET(fd, sets + 2));
}

static void urgent_and_reset(void) {
    int pair[2];
    struct linger at_once = {1, 0};
    open_pair(pair, NULL);
    send(pair[0], "abc", 3, 0);
    send(pair[0], "de", 2, MSG_OOB);
    usleep(2000);
    look("urgent", pair[1]);
    receive("before", pair[1], 100, MSG_DONTWAIT);
    receive("urgent", pair[1], 1, MSG_OOB | MSG_DONTWAIT);
    receive("all at the mark", pair[1], 8, MSG_DONTWAIT | MSG_WAITALL);
    close_pair(pair);
    if (!is_tcp()) return;
    open_pair(pair, NULL);
    send(pair[1], "abc", 3, 0);
    receive("abc", pair[0], 3, 0);
    setsockopt(pair[0], SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(pair[0]);
    usleep(2000);
    look("reset", pair[1]);
    receive("reset", pair[1], 10, MSG_DONTWAIT);
    receive("reset once", pair[1], 10, MSG_DONTWAIT);
    close(pair[1]);
}

static volatile int signals;
static void on_signal(int signal) { signals += signal != 0; }

static void wants_signals(int fd) {
    fcntl(fd, F_SETOWN, getpid());
    fcntl(fd, F_SETFL, O_ASYNC);
}

static void wants_offsets(int fd) {
    int first = 0;
    setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &first, sizeof first);
}

static void wants_counts(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_INQ, &on, sizeof on);
}

static void asked_before_it_is_connected(void) {
    int pair[2];
    open_pair(pair, wants_signals);
    signals = 0;
    send(pair[1], "abc", 3, 0);
    usleep(2000);
    SAY("signals: %d", signals > 0);
    close_pair(pair);
    open_pair(pair, wants_offsets);
    send(pair[1], "abc", 3, 0);
    usleep(2000);
    receive("first", pair[0], 2, MSG_PEEK | MSG_DONTWAIT);
    receive("third", pair[0], 2, MSG_PEEK | MSG_DONTWAIT);
    close_pair(pair);
    for (int i = 0; i < 2 && is_tcp(); i++) {
        open_pair(pair, i ? wants_counts : NULL);
        wants_counts(pair[0]);
        send(pair[1], "abc", 3, 0);
        usleep(2000);
        receive("counted", pair[0], 2, MSG_DONTWAIT);
        close_pair(pair);
    }
}

static void connected_again(void) {
    int pair[2], listener, other;
    struct sockaddr_storage address;
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    open_pair(pair, NULL);
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(epoll, EPOLL_CTL_ADD, pair[0], &event);
    send(pair[0], "abc", 3, 0);
    send(pair[1], "def", 3, 0);
    SAY("dissolve: %ld", told(connect(pair[0], &none, sizeof none)));
    SAY("send: %ld", told(send(pair[0], "a", 1, MSG_NOSIGNAL)));
    SAY("receive: %ld", told(recv(pair[0], in, 1, MSG_DONTWAIT)));
    socklen_t len = listening(&listener, &address);
    SAY("connect: %ld", told(connect(pair[0], (void *)&address, len)));
    other = accept(listener, NULL, NULL);
    send(pair[0], "new", 3, 0);
    receive("new", other, 10, 0);
    send(other, "reply", 5, 0);
    SAY("wait: %d", epoll_wait(epoll, &event, 1, 1000));
    receive("reply", pair[0], 10, 0);
    SAY("once more: %ld", told(connect(pair[0], (void *)&address, len)));
    close(epoll), close(other), close(listener);
    close_pair(pair);
}

static void odd_arguments(void) {
    int pair[2];
    static unsigned long words[1024];
    open_pair(pair, NULL);
    send(pair[0], "x", 1, 0);
    // As many as might be open, of which there is no room for bits here.
    int counts[] = {2000, 4096, 65536};
    for (int i = 0; i < 3; i++) {
        memset(words, 0xff, sizeof words);
        memset(words, 0, 128);
        FD_SET(pair[1], (fd_set *)words);
        struct timeval time = {.tv_usec = 100000};
        SAY("select %d: %ld", counts[i], told(select(counts[i], (void *)words, NULL, NULL, &time)));
    }
    receive("x", pair[1], 10, 0);
    struct sockaddr_un from;
    socklen_t negative = -5, len = 1;
    send(pair[0], "hello", 5, 0);
    SAY("negative: %ld", told(recvfrom(pair[1], in, 10, MSG_DONTWAIT, (void *)&from, &negative)));
    if (!has_records()) {
        send(pair[0], "hello", 5, 0);
        SAY("no length: %ld", told(recvfrom(pair[1], in, 10, MSG_DONTWAIT, (void *)&from, NULL)));
    }
    if (is_tcp()) {
        char option[] = "########";
        SAY("short: %ld %d", told(getsockopt(pair[0], IPPROTO_TCP, TCP_NODELAY, option, &len)), len);
        SAY("untouched: %s", option + 1);
        SAY("negative: %ld", told(setsockopt(pair[0], IPPROTO_TCP, TCP_NODELAY, option, -1)));
    }
    close_pair(pair);
    if (kind != DATAGRAM) return;
    // Of datagrams only who waits is told that nobody reads them any more.
    pthread_t thread;
    open_pair(pair, NULL);
    struct later later = {pair[1], 1};
    pthread_create(&thread, NULL, send_later, &later);
    receive("shut", pair[1], 10, 0);
    receive("shut", pair[1], 10, MSG_DONTWAIT);
    pthread_join(thread, NULL);
    close_pair(pair);
}

static void pipes(void) {
    int one[2], other[2];
    char path[64], file[] = "/tmp/cornersXXXXXX";
    pipe(one), pipe(other);
    write(one[1], "0123456789", 10);
    snprintf(path, sizeof path, "/proc/self/fd/%d", one[0]);
    int named = open(path, O_PATH);
    printf("pipe by name only: %ld\n", told(read(named, in, 3)));
    loff_t at = 0;
    printf("splice at: %ld\n", told(splice(one[0], &at, other[1], NULL, 3, 0)));
    printf("splice to itself: %ld\n", told(splice(one[0], NULL, one[1], NULL, 3, 0)));
    printf("splice oddly: %ld\n", told(splice(one[0], NULL, other[1], NULL, 3, 0x100)));
    printf("tee to itself: %ld\n", told(tee(one[0], one[1], 3, 0)));
    int append = mkostemp(file, O_APPEND);
    unlink(file);
    printf("splice to the end: %ld\n", told(splice(one[0], NULL, append, NULL, 3, 0)));
    printf("splice to what is read: %ld\n", told(splice(one[0], NULL, other[0], NULL, 3, 0)));
    printf("tee: %ld\n", told(tee(one[0], other[1], 4, SPLICE_F_NONBLOCK)));
    printf("splice: %ld\n", told(splice(one[0], NULL, other[1], NULL, 4, SPLICE_F_NONBLOCK)));
    memset(in, 0, sizeof in);
    printf("other: %ld %s\n", told(read(other[0], in, 100)), in);
    memset(in, 0, sizeof in);
    printf("one: %ld %s\n", told(read(one[0], in, 100)), in);
    // One that is full.
    fcntl(other[1], F_SETFL, O_NONBLOCK);
    static char much[4096];
    write(one[1], "abc", 3);
    while (write(other[1], much, sizeof much) > 0) {}
    fcntl(other[1], F_SETFL, 0);
    printf("splice to full: %ld\n", told(splice(one[0], NULL, other[1], NULL, 3, SPLICE_F_NONBLOCK)));
    printf("tee to full: %ld\n", told(tee(one[0], other[1], 3, SPLICE_F_NONBLOCK)));
    printf("one: %ld\n", told(read(one[0], in, 100)));
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    signal(SIGIO, on_signal);
    alarm(60);
    for (kind = 0; kind < KINDS; kind++) {
        if (!is_tcp()) descriptors_behind_bytes();
        all_is_waited_for();
        looked_at_and_cut();
        if (!has_records()) urgent_and_reset();
        if (!has_records()) asked_before_it_is_connected();
        if (is_tcp()) connected_again();
        odd_arguments();
    }
    pipes();
    return 0;
}
