// Random steps on connected sockets, by seed; prints what each came to. What it prints depends on the seed
// alone, whoever carries the bytes: never are so many under way that a write would have to wait.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAIRS = 4, COPIES = 3, UNDER_WAY = 40000, LEN = 12000, MESSAGES = 3, RECORD = 600, PIECES = 10 };
// A pipe, whose side 0 writes; and how many pages it has.
enum { PIPE = 9, PAGES = 16 };

struct side {
    int fds[COPIES];
    int count;
    int nonblock;
    int shut_write;
    // Left: what was registered has been closed, and is told of as long as others stand for the same.
    int events, registered, left;
};
struct pair {
    // 0 none, 4, 6, 1 for AF_UNIX, 2 for a pair that was made as one; 5 seqpacket, 7 and 8 pairs of seqpacket
    // and of datagrams; PIPE
    int kind;
    struct side sides[2];
    // Bytes that a side has sent and the other has not received; a record counts for more than its bytes.
    long under_way[2];
    int pieces[2], records[2], lens[2][UNDER_WAY / RECORD];
    int broken;
};

static struct pair pairs[PAIRS];
static uint64_t state;
static unsigned char out[LEN + 64], in[2 * LEN];
static int epoll, file, moved, listeners[4], passing[2], strangers[2];
static unsigned long serial;
static int messages; // that the last send consisted of
static int named; // length of the address that was received from last

static unsigned draw(unsigned below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (unsigned)((state >> 20) % below);
}

static unsigned sum_of(const unsigned char *bytes, long len) {
    unsigned sum = 1;
    for (long i = 0; i < len; i++) sum = sum * 31 + bytes[i];
    return sum;
}

static long told(long result) { return result < 0 ? -errno : result; }

static int one(struct side *side) { return side->fds[draw(side->count)]; }

static void die(const char *what) {
    perror(what);
    exit(2);
}

static int is_tcp(int kind) { return kind == 4 || kind == 6; }
static int has_records(int kind) { return kind == 5 || kind == 7 || kind == 8; }

static void begin(struct pair *pair, int kind, int a, int a_flags, int b, int b_flags) {
    memset(pair, 0, sizeof *pair);
    pair->kind = kind;
    pair->sides[0] = (struct side){.fds = {a}, .count = 1, .nonblock = a_flags != 0};
    pair->sides[1] = (struct side){.fds = {b}, .count = 1, .nonblock = b_flags != 0};
    printf("open %d: %d %d\n", kind, a, b);
}

// Whatever is under way fits into the receiver's window, or it would come later.
static void widen(int fd) {
    int most = 200000;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &most, sizeof most)) die("setsockopt");
}

static void open_pair(struct pair *pair) {
    int kinds[] = {4, 6, 1, 5, 2, 7, 8, PIPE, PIPE}, families[] = {AF_INET, AF_INET6, AF_UNIX, AF_UNIX};
    int which = draw(9), kind = kinds[which], type = kind == 8 ? SOCK_DGRAM : has_records(kind) ? SOCK_SEQPACKET : SOCK_STREAM;
    if (kind == PIPE) {
        int made[2], flags = draw(2) ? O_NONBLOCK : 0;
        if (flags == 0 && draw(2) ? pipe(made) : pipe2(made, flags | O_CLOEXEC)) die("pipe");
        begin(pair, kind, made[1], flags, made[0], flags);
        return;
    }
    if (which > 3) {
        int made[2], flags = draw(2) ? SOCK_NONBLOCK : 0;
        if (socketpair(AF_UNIX, type | flags, 0, made)) die("socketpair");
        begin(pair, kind, made[0], flags, made[1], flags);
        return;
    }
    struct sockaddr_storage address;
    socklen_t len = sizeof address;
    if (getsockname(listeners[which], (void *)&address, &len)) die("getsockname");
    int flags = draw(2) ? SOCK_NONBLOCK : 0;
    int a = socket(families[which], type | flags, 0);
    if (a < 0) die("socket");
    if (is_tcp(kind)) widen(a);
    if (connect(a, (void *)&address, len) && errno != EINPROGRESS) die("connect");
    int accept_flags = draw(2) ? SOCK_NONBLOCK : 0;
    int b = accept4(listeners[which], NULL, NULL, accept_flags);
    if (b < 0) die("accept");
    // Otherwise the kernel holds bytes back until others are acknowledged.
    int on = 1;
    for (int i = 0; i < 2 && is_tcp(kind); i++) setsockopt(i ? b : a, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    begin(pair, kind, a, flags, b, accept_flags);
}

static void close_side(struct pair *pair, int s) {
    struct side *side = &pair->sides[s];
    // A socket that is closed with bytes unread tells the other side of a reset, which makes the kernel
    // forget what that has not read; a carried one keeps it.
    if (has_records(pair->kind))
        for (int i = 0; i < pair->records[1 - s]; i++) recv(side->fds[0], in, sizeof in, MSG_DONTWAIT);
    else
        while (recv(side->fds[0], in, sizeof in, MSG_DONTWAIT) > 0) {}
    pair->records[1 - s] = 0;
    if (side->registered) epoll_ctl(epoll, EPOLL_CTL_DEL, side->fds[0], NULL);
    for (int i = 0; i < side->count; i++) close(side->fds[i]);
    side->count = side->registered = side->left = 0;
    printf("gone\n");
    if (!pair->sides[0].count && !pair->sides[1].count) pair->kind = 0;
}

static long send_some(int fd, long len) {
    int how = draw(6), flags = MSG_NOSIGNAL | (draw(2) ? MSG_DONTWAIT : 0);
    long first = draw(len + 1), second = draw(len - first + 1);
    struct iovec pieces[3] = {{out, first}, {out + first, second}, {out + first + second, len - first - second}};
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 3};
    // The kernel sends what is in the file when it is received: never the same place soon again.
    off_t from = 64 + serial % 256 * 16384, start = from;
    switch (how) {
    case 0: return told(write(fd, out, len));
    case 1: return told(writev(fd, pieces, 3));
    case 2: return told(sendmsg(fd, &message, flags));
    case 3:
        if (pwrite(file, out, len, start) != len) die("pwrite");
        return told(sendfile(fd, file, &from, len));
    case 4: {
        struct mmsghdr many[MESSAGES] = {};
        for (int i = 0; i < MESSAGES; i++) many[i].msg_hdr = (struct msghdr){.msg_iov = pieces + i, .msg_iovlen = 1};
        long sent = sendmmsg(fd, many, MESSAGES, flags), sum = 0;
        for (int i = 0; i < sent; i++) sum += many[i].msg_len;
        messages = MESSAGES;
        return sent > 0 ? sum : told(sent);
    }
    default: return told(send(fd, out, len, flags));
    }
}

// `how` and `part` are drawn once for all that comes, since it may come in other pieces.
static long receive_some(int fd, long len, int flags, int how, unsigned part) {
    long first = part % (len + 1);
    struct iovec pieces[2] = {{in, first}, {in + first, len - first}};
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 2};
    struct sockaddr_storage from;
    socklen_t from_len = sizeof from;
    // Without flags, only of what does not wait.
    if (how < 2 && flags & ~MSG_DONTWAIT) how = 3;
    switch (how) {
    case 0: return told(read(fd, in, len));
    case 1: return told(readv(fd, pieces, 2));
    case 2: return told(recvmsg(fd, &message, flags));
    case 4: {
        long got = told(recvfrom(fd, in, len, flags, (void *)&from, &from_len));
        if (got > 0) named = from_len;
        return got;
    }
    case 5: {
        struct mmsghdr many[2] = {};
        for (int i = 0; i < 2; i++) many[i].msg_hdr = (struct msghdr){.msg_iov = pieces + i, .msg_iovlen = 1};
        // A call that asks for nothing says nothing of errors.
        int from = first == 0, count = first == 0 || first == len ? 1 : 2;
        long got = recvmmsg(fd, many + from, count, flags, NULL);
        if (got <= 0) return told(got);
        if (got == 2) memmove(in + many[0].msg_len, in + first, many[1].msg_len);
        return many[from].msg_len + (got == 2 ? many[1].msg_len : 0);
    }
    default: return told(recv(fd, in, len, flags));
    }
}

// All that is there, up to `len`: how it comes in pieces is nobody's business.
static void receive_all(struct pair *pair, int s, int fd, long len) {
    long done = 0, got = 0;
    unsigned sum = 1, how = draw(6), part = draw(LEN);
    if (how < 2 && !pair->sides[s].nonblock) how = 3;
    while (done < len) {
        got = receive_some(fd, len - done, MSG_DONTWAIT, how, part);
        if (got <= 0) break;
        for (long i = 0; i < got; i++) sum = sum * 31 + in[i];
        done += got;
        pair->under_way[1 - s] -= got;
    }
    printf("receive %ld: %ld %u, %ld %d\n", len, done, sum, done < len ? got : 0, named);
}

// What a record's receiver is told, by every call that there is.
static long receive_record(int fd, long len, int flags, int how) {
    long first = len / 3;
    struct iovec pieces[2] = {{in, first}, {in + first, len - first}};
    char control[64];
    struct sockaddr_un from = {};
    socklen_t from_len = sizeof from;
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 2, .msg_control = control, .msg_controllen = sizeof control};
    if (how % 2) message.msg_name = &from, message.msg_namelen = sizeof from;
    switch (how) {
    case 0: return told(read(fd, in, len));
    case 1: return told(readv(fd, pieces, 2));
    case 2:
    case 3: {
        long got = told(recvmsg(fd, &message, flags));
        if (got >= 0) printf("(%x %ld %d) ", message.msg_flags, (long)message.msg_controllen, message.msg_namelen);
        return got;
    }
    case 4: {
        long got = told(recvfrom(fd, in, len, flags, (void *)&from, &from_len));
        if (got >= 0) printf("(%d) ", from_len);
        return got;
    }
    default: return told(recv(fd, in, len, flags));
    }
}

static void received(struct pair *pair, int s) {
    if (pair->records[s] == 0) return;
    pair->under_way[s] -= pair->lens[s][0] + RECORD;
    memmove(pair->lens[s], pair->lens[s] + 1, sizeof pair->lens[s] - sizeof(int));
    pair->records[s]--;
}

static void sent_record(struct pair *pair, int s, long len) {
    pair->lens[s][pair->records[s]++] = len;
    pair->under_way[s] += len + RECORD;
}

static long len_of_record(void) { return draw(8) == 0 ? 0 : draw(4) ? draw(300) : draw(LEN); }

static void receive_records(struct pair *pair, int s, int fd) {
    struct side *side = &pair->sides[s];
    if (draw(5) == 0) {
        struct mmsghdr many[MESSAGES] = {};
        struct iovec pieces[MESSAGES];
        for (int i = 0; i < MESSAGES; i++) {
            pieces[i] = (struct iovec){in + i * 300, draw(300)};
            many[i].msg_hdr = (struct msghdr){.msg_iov = pieces + i, .msg_iovlen = 1};
        }
        struct timespec limit = {.tv_nsec = 1};
        int got = recvmmsg(fd, many, MESSAGES, MSG_DONTWAIT | (draw(2) ? MSG_WAITFORONE : 0), draw(2) ? &limit : NULL);
        printf("records: %ld", told(got));
        for (int i = 0; i < got; i++) {
            printf(" %d:%x:%u", many[i].msg_len, many[i].msg_hdr.msg_flags, sum_of(pieces[i].iov_base, many[i].msg_len));
            received(pair, 1 - s);
        }
        printf("\n");
        return;
    }
    int flags = MSG_DONTWAIT | (draw(3) ? 0 : MSG_TRUNC) | (draw(3) ? 0 : MSG_PEEK) | (draw(8) ? 0 : MSG_WAITALL);
    long len = draw(3) ? LEN : draw(300);
    int how = draw(6);
    // Without flags, only of what does not wait.
    if (how < 2 && (flags & ~MSG_DONTWAIT || !side->nonblock)) how += 2;
    long got = receive_record(fd, len, flags, how);
    if (got >= 0 && !(flags & MSG_PEEK) && !(len == 0 && how < 2)) received(pair, 1 - s);
    printf("record %ld %x: %ld %u\n", len, flags, got, sum_of(in, got < len ? got : len));
}

static void send_records(struct pair *pair, int s, int fd) {
    int is_open = pair->sides[1 - s].count;
    long lens[MESSAGES], all = 0;
    for (int i = 0; i < MESSAGES; i++) all += RECORD + (lens[i] = len_of_record());
    if (pair->under_way[s] + all > UNDER_WAY || pair->records[s] + MESSAGES > UNDER_WAY / RECORD) return;
    for (int i = 0; i < LEN; i++) out[i] = (unsigned char)(serial + i * 7);
    serial += 13;
    int how = draw(6), flags = MSG_NOSIGNAL | (draw(2) ? MSG_DONTWAIT : 0) | (draw(8) ? 0 : MSG_EOR);
    struct iovec pieces[MESSAGES];
    struct mmsghdr many[MESSAGES] = {};
    for (int i = 0; i < MESSAGES; i++) {
        pieces[i] = (struct iovec){out, lens[i]};
        many[i].msg_hdr = (struct msghdr){.msg_iov = pieces + i, .msg_iovlen = 1};
    }
    long sent;
    switch (how) {
    case 0: sent = told(write(fd, out, lens[0])); break;
    case 1:
        // Of nothing it makes no record.
        pieces[0].iov_len = lens[0] = 1 + lens[0] / 2;
        pieces[1] = (struct iovec){out, 1};
        sent = told(writev(fd, pieces, 1));
        break;
    case 2: sent = told(sendmsg(fd, &many[0].msg_hdr, flags)); break;
    case 3:
        sent = told(sendmmsg(fd, many, MESSAGES, flags));
        for (int i = 0; i < sent && is_open; i++) sent_record(pair, s, lens[i]);
        printf("send %ld %ld %ld: %ld\n", lens[0], lens[1], lens[2], sent);
        return;
    default: sent = told(send(fd, out, lens[0], flags));
    }
    if (sent >= 0 && is_open) sent_record(pair, s, sent);
    printf("send %ld: %ld\n", lens[0], sent);
}

// Of a child that waits for nothing: send or receive a little. Say what came of it all.
static void end_child(int how, int fd, long sum) {
    if (how == 1) sum = send(fd, out, 10, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (how == 2) sum = recv(fd, in, 10, MSG_DONTWAIT);
    printf("child %d: %ld\n", how, sum);
    fflush(stdout);
    _exit(0);
}

// The child waits for the records that are under way, and for one more.
static void records_in_child(struct pair *pair, int s, int fd) {
    int count = pair->records[1 - s], how = draw(3);
    fflush(stdout);
    pid_t child = fork();
    if (child < 0) die("fork");
    if (child == 0) {
        long sum = 0;
        if (how == 0) {
            int fl = fcntl(fd, F_GETFL);
            fcntl(fd, F_SETFL, fl & ~O_NONBLOCK);
            for (int i = 0; i <= count; i++) sum = sum * 31 + recv(fd, in, LEN, 0);
            fcntl(fd, F_SETFL, fl);
        }
        end_child(how, fd, sum);
    }
    int status;
    if (how == 0) {
        usleep(draw(2) * 300);
        if (send(pair->sides[1 - s].fds[0], out, 100, MSG_NOSIGNAL) != 100) die("send");
        while (pair->records[1 - s]) received(pair, 1 - s);
    }
    waitpid(child, &status, 0);
    // That it has ended others learn a little later.
    usleep(3000);
    if (how == 1 && pair->records[s] < UNDER_WAY / RECORD) sent_record(pair, s, 10);
    if (how == 2) received(pair, 1 - s);
    printf("ended %d\n", status);
}

static int readiness(short events, short wanted) { return events & (wanted | POLLERR | POLLHUP | POLLNVAL); }

// How much an AF_UNIX socket has room for depends on how its bytes came.
static void look(int fd, int kind) {
    short wanted = (draw(2) ? POLLIN : 0) | (draw(2) && (is_tcp(kind) || kind == PIPE) ? POLLOUT : 0) | (draw(4) ? 0 : POLLRDHUP);
    struct pollfd one = {.fd = fd, .events = wanted};
    if (draw(2)) {
        int ready = poll(&one, 1, 0);
        printf("poll %x: %d %x\n", wanted, ready, readiness(one.revents, wanted));
        return;
    }
    fd_set reads, writes;
    FD_ZERO(&reads);
    FD_ZERO(&writes);
    FD_SET(fd, &reads);
    if (wanted & POLLOUT) FD_SET(fd, &writes);
    struct timeval none = {0};
    int ready = select(fd + 1, &reads, &writes, NULL, &none);
    printf("select: %d %d %d\n", ready, FD_ISSET(fd, &reads), FD_ISSET(fd, &writes));
}

static int by_data(const void *a, const void *b) {
    uint64_t x = ((struct epoll_event *)a)->data.u64, y = ((struct epoll_event *)b)->data.u64;
    return x < y ? -1 : x > y;
}

// What has ended of a socket an edge tells again when the other side has received: an edge for writing.
static int is_writers_edge(struct epoll_event *event) {
    unsigned which = (unsigned)event->data.u64;
    struct pair *pair = &pairs[which / 2 % PAIRS];
    // One that has ended can be read from, too.
    unsigned ended = EPOLLHUP | EPOLLRDHUP | (pair->broken ? EPOLLIN : 0);
    return !(event->events & ~ended) && pair->kind != PIPE && pair->sides[which % 2].events & EPOLLET;
}

static void wait_epoll(void) {
    struct epoll_event events[16];
    int count = epoll_wait(epoll, events, 8, 0);
    // What only the kernel knows may come a little later than bytes do.
    usleep(40);
    struct epoll_event later[8];
    int more = epoll_wait(epoll, later, 8, 0);
    for (int i = 0; i < more; i++) {
        int same = 0;
        while (same < count && events[same].data.u64 != later[i].data.u64) same++;
        if (same == count) events[count++] = later[i];
        else events[same].events |= later[i].events;
    }
    int told = 0;
    for (int i = 0; i < count; i++)
        if (!is_writers_edge(&events[i])) events[told++] = events[i];
    count = told;
    if (count > 1) qsort(events, count, sizeof *events, by_data);
    printf("wait: %d", count);
    for (int i = 0; i < count; i++) {
        unsigned got = events[i].events;
        printf(" %lx:%x", (long)events[i].data.u64, got);
        for (int p = 0; p < PAIRS; p++)
            for (int s = 0; s < 2; s++)
                if (events[i].data.u64 == (uint64_t)(p * 2 + s) + 0x100000000 && pairs[p].sides[s].events & EPOLLONESHOT)
                    pairs[p].sides[s].events = 0;
    }
    printf("\n");
}

static void change_epoll(int p, int s) {
    struct side *side = &pairs[p].sides[s];
    if (side->left) return;
    int what = 1 + draw(3);
    struct epoll_event event = {.data.u64 = (uint64_t)(p * 2 + s) + 0x100000000};
    // A socket of AF_UNIX tells an edge for writing when the other side reads; that is left out.
    if (draw(4)) event.events |= EPOLLIN;
    if (draw(3) == 0 && (is_tcp(pairs[p].kind) || pairs[p].kind == PIPE)) event.events |= EPOLLOUT;
    if (draw(4) == 0) event.events |= EPOLLRDHUP;
    if (draw(4) == 0) event.events |= EPOLLET;
    // When a socket has an edge for writing is for the kernel to know.
    if (event.events & EPOLLET) event.events &= ~EPOLLOUT;
    if (draw(8) == 0) event.events |= EPOLLONESHOT;
    long result = told(epoll_ctl(epoll, what, side->fds[0], &event));
    if (result == 0) {
        side->registered = what != EPOLL_CTL_DEL;
        side->events = event.events;
    }
    printf("control %d %x: %ld\n", what, event.events, result);
}

static void in_child(struct pair *pair, int s, int fd) {
    long len = pair->under_way[1 - s];
    int how = draw(3);
    fflush(stdout);
    pid_t child = fork();
    if (child < 0) die("fork");
    if (child == 0) {
        long sum = 0;
        if (how == 0) {
            // Wait for what the parent is about to send.
            int fl = fcntl(fd, F_GETFL);
            fcntl(fd, F_SETFL, fl & ~O_NONBLOCK);
            long want = len + 100, done = 0;
            while (done < want) {
                long got = recv(fd, in, want - done, 0);
                if (got <= 0) break;
                done += got;
            }
            sum = done;
            fcntl(fd, F_SETFL, fl);
        }
        end_child(how, fd, sum);
    }
    int status;
    struct side *other = &pair->sides[1 - s];
    if (how == 0) {
        usleep(draw(2) * 300);
        long sent = other->count && !other->shut_write ? send(other->fds[0], out, 100, MSG_NOSIGNAL) : -1;
        if (sent != 100 && other->count) shutdown(other->fds[0], SHUT_WR), other->shut_write = 1;
        pair->under_way[1 - s] = 0;
    }
    waitpid(child, &status, 0);
    // That it has ended others learn a little later.
    usleep(3000);
    if (how == 1 && !pair->sides[s].shut_write) pair->under_way[s] += 10;
    if (how == 2) pair->under_way[1 - s] -= pair->under_way[1 - s] < 10 ? pair->under_way[1 - s] : 10;
    printf("ended %d\n", status);
}

static int through_message(int fd) {
    char control[CMSG_SPACE(sizeof fd)], byte = 1;
    struct iovec piece = {&byte, 1};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    // By a pair, which is carried, or by sockets that are not.
    int *way = draw(2) ? passing : strangers;
    struct mmsghdr many = {.msg_hdr = message};
    if (draw(2)) {
        if (sendmmsg(way[0], &many, 1, 0) != 1) die("sendmmsg");
    } else {
        if (sendmsg(way[0], &message, 0) != 1) die("sendmsg");
    }
    message.msg_controllen = many.msg_hdr.msg_controllen = sizeof control;
    if (draw(2)) {
        if (recvmmsg(way[1], &many, 1, 0, NULL) != 1) die("recvmmsg");
    } else {
        if (recvmsg(way[1], &message, 0) != 1) die("recvmsg");
    }
    int got;
    memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof got);
    return got;
}

#include "steps_pipes.h"

static void step(int p) {
    struct pair *pair = &pairs[p];
    if (!pair->kind) {
        open_pair(pair);
        return;
    }
    int s = draw(2);
    struct side *side = &pair->sides[s], *other = &pair->sides[1 - s];
    if (!side->count) {
        s = 1 - s;
        struct side *swap = side;
        side = other;
        other = swap;
    }
    int fd = one(side), what = draw(104);
    if (pair->kind == PIPE && (what < 60 || (what > 95 && what < 98) || what > 101)) {
        step_pipe(pair, s, fd, what);
    } else if (has_records(pair->kind) && what < 30) {
        send_records(pair, s, fd);
    } else if (has_records(pair->kind) && what < 60) {
        receive_records(pair, s, fd);
    } else if (has_records(pair->kind) && what == 96) {
        if (draw(4) == 0 && !pair->broken) records_in_child(pair, s, fd);
    } else if (what < 30) {
        long len = draw(4) ? 1 + draw(200) : 1 + draw(LEN);
        if (pair->under_way[s] + len > UNDER_WAY) return;
        // Of many small pieces that nobody takes TCP keeps some back for a while.
        if (pair->under_way[s] == 0) pair->pieces[s] = 0;
        if (is_tcp(pair->kind) && pair->pieces[s] + MESSAGES > PIECES) return;
        for (long i = 0; i < len; i++) out[i] = (unsigned char)(serial + i * 7);
        serial += 13;
        messages = 1;
        long sent = send_some(fd, len);
        pair->pieces[s] += messages;
        if (sent > 0 && other->count) pair->under_way[s] += sent;
        printf("send %ld: %ld\n", len, sent);
    } else if (what < 55) {
        receive_all(pair, s, fd, 1 + draw(draw(2) ? 300 : LEN));
    } else if (what < 58) {
        long got = receive_some(fd, 1 + draw(300), MSG_DONTWAIT | MSG_PEEK, draw(6), draw(LEN));
        printf("peek: %ld %d\n", got > 0 ? 1 : got, got > 0 ? in[0] : 0);
    } else if (what < 60) {
        long len = pair->under_way[1 - s];
        if (len > 0 && len < LEN && !pair->broken) {
            long got = told(recv(fd, in, len, MSG_WAITALL));
            printf("all %ld: %ld %u\n", len, got, sum_of(in, got));
            if (got > 0) pair->under_way[1 - s] -= got;
        }
    } else if (what < 67) {
        look(fd, pair->kind);
    } else if (what < 74) {
        change_epoll(p, s);
    } else if (what < 84) {
        wait_epoll();
    } else if (what < 87) {
        int waiting = -1;
        long result = told(ioctl(fd, FIONREAD, &waiting));
        printf("waiting: %ld %d\n", result, waiting);
    } else if (what < 90) {
        if (side->count < COPIES) {
            int how = draw(4), copy;
            // What is in a ring may go to the kernel then, which is an edge.
            int is_told = side->left || (side->registered && (side->events & EPOLLET));
            if (how == 3 && (is_told || (pair->kind == PIPE && (pair->sides[1].registered || pair->sides[1].left)))) how = 0;
            if (how == 0) copy = dup(fd);
            else if (how == 1) copy = fcntl(fd, F_DUPFD_CLOEXEC, 100);
            else if (how == 2) copy = dup3(fd, 200 + p * 2 + s, O_CLOEXEC);
            else copy = through_message(fd);
            printf("copy %d: %d\n", how, copy);
            // A descriptor is not put in its own place. One that was replaced is known already.
            if (copy < 0) return;
            for (int i = 0; i < side->count; i++)
                if (side->fds[i] == copy) return;
            side->fds[side->count++] = copy;
        }
    } else if (what < 92) {
        if (side->count > 1) {
            // An edge may be told again, when the one that is registered is closed.
            int is_first = draw(2) && !(side->registered && side->events & EPOLLET);
            int which = is_first ? 0 : side->count - 1, closed = side->fds[which];
            side->fds[which] = side->fds[--side->count];
            if (is_first && side->registered) side->left = 1, side->registered = 0;
            printf("close %d: %ld\n", closed, told(close(closed)));
        }
    } else if (what < 94) {
        side->nonblock = draw(2);
        int on = side->nonblock;
        long result = draw(2) ? told(ioctl(fd, FIONBIO, &on))
                              : told(fcntl(fd, F_SETFL, on ? O_NONBLOCK : 0));
        printf("nonblock %d: %ld %x\n", on, result, fcntl(fd, F_GETFL) & O_NONBLOCK);
    } else if (what < 96) {
        int value = draw(2), got = -1;
        socklen_t len = sizeof got;
        long set = !is_tcp(pair->kind) ? 0 : told(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &value, sizeof value));
        if (is_tcp(pair->kind)) getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &got, &len);
        int error = -1;
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len);
        int on = 1;
        if (is_tcp(pair->kind)) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        printf("option %d: %ld %d %d\n", value, set, got != 0, error);
    } else if (what < 97) {
        if (draw(4) == 0 && !pair->broken) in_child(pair, s, fd);
    } else if (what < 98) {
        if (draw(3)) return;
        int how = draw(3) ? SHUT_WR : SHUT_RDWR;
        printf("shutdown %d: %ld\n", how, told(shutdown(fd, how)));
        side->shut_write = 1;
        pair->broken = 1;
    } else if (what < 100) {
        if (draw(3)) return;
        pair->broken = 1;
        pair->under_way[1 - s] = 0;
        close_side(pair, s);
    } else if (what < 102) {
        int unread = -1;
        if (!is_tcp(pair->kind)) printf("unread: %ld %d\n", told(ioctl(fd, SIOCOUTQ, &unread)), unread > 0);
    } else if (what < 103) {
        uint64_t info[29] = {};
        socklen_t len = sizeof info;
        // What has not left yet is counted apart, and what has left twice.
        uint32_t *unsent = (uint32_t *)info + 144 / 4;
        if (is_tcp(pair->kind) && !pair->broken && getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &len) == 0)
            printf("sent %lu\n", info[200 / 8] - info[208 / 8] + *unsent);
    } else if (!has_records(pair->kind) && pair->under_way[1 - s] == 0 && !pair->broken) {
        int least = draw(2) ? 1 : 60;
        printf("least %d: %ld\n", least, told(setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &least, sizeof least)));
    }
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    state = strtoull(argv[1], NULL, 10) * 0x9e3779b97f4a7c15 + 1;
    long steps = atol(argv[2]);
    signal(SIGPIPE, SIG_IGN);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    file = memfd_create("steps", MFD_CLOEXEC);
    moved = memfd_create("moved", MFD_CLOEXEC);
    if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, passing)) die("socketpair");
    struct sockaddr_un names[2] = {};
    for (int i = 0; i < 2; i++) {
        socklen_t len = sizeof names[i];
        strangers[i] = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        // A name of the kernel's choice.
        if (bind(strangers[i], &(struct sockaddr){AF_UNIX}, sizeof(sa_family_t))) die("bind");
        if (getsockname(strangers[i], (void *)&names[i], &len)) die("getsockname");
        if (i && connect(strangers[0], (void *)&names[i], len)) die("connect");
    }
    int families[] = {AF_INET, AF_INET6, AF_UNIX, AF_UNIX};
    for (int i = 0; i < 4; i++) {
        struct sockaddr_storage address = {.ss_family = families[i]};
        socklen_t len = i == 0 ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
        if (i == 0) ((struct sockaddr_in *)&address)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        if (i == 1) ((struct sockaddr_in6 *)&address)->sin6_addr = in6addr_loopback;
        if (i > 1) len = sizeof(sa_family_t); // a name of the kernel's choice
        listeners[i] = socket(families[i], (i == 3 ? SOCK_SEQPACKET : SOCK_STREAM) | SOCK_CLOEXEC, 0);
        if (i < 2) widen(listeners[i]);
        if (bind(listeners[i], (void *)&address, len) || listen(listeners[i], 16)) die("listen");
    }
    for (long i = 0; i < steps; i++) {
        int p = draw(PAIRS);
        printf("%ld p%d ", i, p);
        step(p);
        printf("\n");
    }
    return 0;
}
