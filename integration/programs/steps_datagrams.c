// Random steps on datagram sockets of UDP and of AF_UNIX, by seed; prints what each came to. What it prints depends on the seed
// alone, whoever carries the datagrams. Of several senders to one socket nobody promises in which order theirs
// come: then all are received at once, and told by sender.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

// Of AF_UNIX the kernel's queue has room for 11; a number of its own in place of a port.
enum { PATH = 70, ABSTRACT, UNBOUND, LOCAL_MOST = 9, LOCAL_LEN = 2000 };
enum { SOCKETS = 6, COPIES = 3, LEN = 66000, MOST = 60, ROOM = 100000, MESSAGES = 3, GONE = SOCKETS, LAST = 65001 };

struct one {
    int kind; // 0 none, 4, 6; 40 and 60 hear everywhere, 66 IPv6 without IPv4; 44 is not bound by itself; from 70 AF_UNIX
    int fds[COPIES], count;
    int nonblock, port, was_connected, is_wide;
    int peer; // that it is connected to, GONE, or -1
    int registered;
    unsigned events;
    // What may not have been received: by whom, how many, and bytes of all.
    int from[SOCKETS + 1], waiting;
    long bytes;
};

static struct one all[SOCKETS];
static uint64_t state;
static unsigned char out[LEN], in[LEN];
static int epoll, dead, passing[2], next_port = 10000;
static unsigned serial;
static char folder[] = "/tmp/sbx-steps-XXXXXX";

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
static int one_fd(struct one *one) { return one->fds[draw(one->count)]; }
static int index_of(struct one *one) { return one - all; }
static int is_local(int kind) { return kind >= PATH; }
static int is_six(int kind) { return kind == 6 || kind == 60 || kind == 66; }

static void die(const char *what) {
    perror(what);
    exit(2);
}

union address {
    struct sockaddr any;
    struct sockaddr_in four;
    struct sockaddr_in6 six;
    struct sockaddr_un local;
};

static socklen_t local_place(union address *at, int kind, int port) {
    memset(at, 0, sizeof *at);
    at->local.sun_family = AF_UNIX;
    char *name = at->local.sun_path + (kind == ABSTRACT);
    int len = kind == ABSTRACT ? sprintf(name, "%s.%06d", folder, port) : sprintf(name, "%s/%06d", folder, port);
    // What follows a path's zero is no part of it.
    return offsetof(struct sockaddr_un, sun_path) + len + (kind == ABSTRACT ? 1 : draw(3));
}

static socklen_t place(union address *at, int six, int mapped, int any, int port) {
    memset(at, 0, sizeof *at);
    if (!six) {
        at->four = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
        at->four.sin_addr.s_addr = htonl(any ? INADDR_ANY : INADDR_LOOPBACK);
        return sizeof at->four;
    }
    at->six = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(port)};
    if (!any) at->six.sin6_addr = in6addr_loopback;
    if (mapped) inet_pton(AF_INET6, "::ffff:127.0.0.1", &at->six.sin6_addr);
    return sizeof at->six;
}

// Where `from` finds it.
static socklen_t place_of(union address *at, struct one *from, struct one *to, int mapped, int port) {
    if (is_local(to->kind)) return local_place(at, to->kind, port);
    return place(at, is_six(from->kind), mapped && is_six(from->kind), 0, port);
}

static int port_of(int fd) {
    union address own;
    socklen_t len = sizeof own;
    if (getsockname(fd, &own.any, &len)) die("getsockname");
    return ntohs(own.any.sa_family == AF_INET ? own.four.sin_port : own.six.sin6_port);
}

// Whose address it is, and how it is told.
static int who(union address *from, socklen_t len) {
    if (len > 2 && from->any.sa_family == AF_UNIX) {
        char *name = from->local.sun_path, *end = strrchr(name + !*name, *name ? '/' : '.');
        for (int i = 0; i < SOCKETS; i++)
            if (end && all[i].kind && all[i].port == atoi(end + 1) && all[i].port) return 200 + i;
        return -2;
    }
    if (len < 16) return -1;
    int port = ntohs(from->any.sa_family == AF_INET ? from->four.sin_port : from->six.sin6_port);
    int form = from->any.sa_family == AF_INET ? 0 : IN6_IS_ADDR_V4MAPPED(&from->six.sin6_addr) ? 20 : 10;
    int is_loopback = from->any.sa_family == AF_INET ? from->four.sin_addr.s_addr == htonl(INADDR_LOOPBACK)
                      : form == 20                   ? from->six.sin6_addr.s6_addr[12] == 127
                                                     : IN6_IS_ADDR_LOOPBACK(&from->six.sin6_addr);
    for (int i = 0; i < SOCKETS; i++)
        if (all[i].kind && all[i].port == port && port) return is_loopback * 100 + form + i;
    return -2;
}

static void open_one(struct one *one) {
    int kinds[] = {4, 6, 40, 60, 66, 44, PATH, PATH, ABSTRACT, ABSTRACT, UNBOUND}, flags = draw(2) ? SOCK_NONBLOCK : 0;
    memset(one, 0, sizeof *one);
    one->kind = kinds[draw(11)];
    one->peer = -1;
    one->nonblock = flags != 0;
    int family = is_local(one->kind) ? AF_UNIX : is_six(one->kind) ? AF_INET6 : AF_INET;
    int fd = socket(family, SOCK_DGRAM | flags, 0);
    if (fd < 0) die("socket");
    one->fds[one->count++] = fd;
    int only = one->kind == 66, most = 500000;
    if (is_six(one->kind) && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof only)) die("only");
    one->is_wide = draw(2);
    if (one->is_wide && setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &most, sizeof most)) die("wide");
    // Ports are never the same twice, as those that the kernel chooses may be.
    for (int bound = one->kind == 44 || one->kind == UNBOUND; !bound;) {
        union address own;
        socklen_t len = is_local(one->kind) ? local_place(&own, one->kind, one->port = next_port++) : place(&own, is_six(one->kind), 0, one->kind > 6, next_port++);
        bound = bind(fd, &own.any, len) == 0;
        if (!bound && errno != EADDRINUSE) die("bind");
    }
    if (!is_local(one->kind)) one->port = one->kind == 44 ? 0 : port_of(fd);
    printf("open %d: %d %d\n", index_of(one), one->kind, fd);
}

static void close_one(struct one *one) {
    for (int i = 0; i < one->count; i++) {
        if (one->registered && i == 0) epoll_ctl(epoll, EPOLL_CTL_DEL, one->fds[0], NULL);
        close(one->fds[i]);
    }
    for (int i = 0; i < SOCKETS; i++) {
        all[i].from[GONE] += all[i].from[index_of(one)];
        all[i].from[index_of(one)] = 0;
        if (all[i].peer == index_of(one)) all[i].peer = GONE;
    }
    union address at;
    if (one->kind == PATH && local_place(&at, PATH, one->port)) unlink(at.local.sun_path);
    one->kind = 0;
    printf("gone\n");
}

static void forget(struct one *one) {
    memset(one->from, 0, sizeof one->from);
    one->waiting = one->bytes = 0;
}

// Everything, by sender.
static void drain(struct one *one) {
    char lines[SOCKETS + 1][MOST * 24 + 1];
    int used[SOCKETS + 1] = {0}, count = 0;
    unsigned gone = 0;
    memset(lines, 0, sizeof lines);
    for (;;) {
        union address from;
        socklen_t len = sizeof from;
        long got = recvfrom(one->fds[0], in, sizeof in, MSG_DONTWAIT, &from.any, &len);
        if (got < 0) {
            if (errno == EAGAIN) break;
            printf("(%d) ", errno);
            continue;
        }
        int sender = who(&from, len), line = sender < 0 ? SOCKETS : sender % 10;
        // Of those who are gone nobody knows who was who.
        if (sender < 0) gone += got * 31 + sum_of(in, got);
        else if (used[line] < MOST * 24 - 30)
            used[line] += sprintf(lines[line] + used[line], " %d:%ld:%x", sender, got, sum_of(in, got) & 0xffff);
        count++;
    }
    printf("drain %d: %d %x", index_of(one), count, gone);
    for (int i = 0; i < SOCKETS; i++) printf("%s", lines[i]);
    printf("\n");
    forget(one);
}

// How many have sent what it has not received; those who are gone may be several.
static int senders(struct one *one) {
    int count = one->from[GONE] ? 2 : 0;
    for (int i = 0; i < SOCKETS; i++) count += one->from[i] != 0;
    return count;
}

static void received(struct one *one, long bytes) {
    for (int i = 0; i <= SOCKETS; i++)
        if (one->from[i]) {
            one->from[i]--;
            one->waiting--;
            one->bytes -= bytes + 1000;
            return;
        }
}

static long receive_by(struct one *one, int fd, long len, int flags, int how) {
    long first = len / 3;
    struct iovec pieces[2] = {{in, first}, {in + first, len - first}};
    char control[128];
    union address from = {};
    socklen_t from_len = draw(4) ? sizeof from : draw(20);
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 2, .msg_control = control, .msg_controllen = sizeof control};
    if (how % 2) message.msg_name = &from, message.msg_namelen = from_len;
    if (how < 2 && (flags & ~MSG_DONTWAIT || !one->nonblock)) how += 2;
    switch (how) {
    case 0: return told(read(fd, in, len));
    case 1: return told(readv(fd, pieces, 2));
    case 2:
    case 3: {
        long got = told(recvmsg(fd, &message, flags));
        if (got >= 0) printf("(%x %ld %d %d) ", message.msg_flags, (long)message.msg_controllen, message.msg_namelen, how % 2 ? who(&from, from_len) : 0);
        return got;
    }
    case 4: {
        socklen_t room = from_len;
        long got = told(recvfrom(fd, in, len, flags, &from.any, &from_len));
        if (got >= 0) printf("(%d %d) ", from_len, room < sizeof from ? 0 : who(&from, from_len));
        return got;
    }
    case 5: {
        struct mmsghdr many[2] = {{.msg_hdr = {.msg_iov = pieces, .msg_iovlen = 2}}};
        long got = recvmmsg(fd, many, 1, flags, NULL);
        return got < 0 ? told(got) : (long)many[0].msg_len;
    }
    default: return told(recv(fd, in, len, flags));
    }
}

static void receive(struct one *one) {
    if (senders(one) > 1 || draw(4) == 0) {
        drain(one);
        return;
    }
    int flags = MSG_DONTWAIT | (draw(3) ? 0 : MSG_TRUNC) | (draw(3) ? 0 : MSG_PEEK), how = draw(7);
    long len = draw(3) ? LEN : draw(300);
    int consumes = !(flags & MSG_PEEK);
    if (how < 2 && (flags & ~MSG_DONTWAIT || !one->nonblock)) how += 2;
    if (len == 0 && how < 2) consumes = 0;
    memset(in, 0, 64);
    long got = receive_by(one, one_fd(one), len, flags, how);
    if (got >= 0 && consumes) received(one, got);
    printf("receive %d %ld %x: %ld %x\n", index_of(one), len, flags, got, sum_of(in, got < 0 ? 0 : got < len ? got : len));
}

static long send_by(int fd, long len, union address *to, socklen_t to_len, int how, long lens[MESSAGES]) {
    long first = draw(len + 1);
    struct iovec pieces[2] = {{out, first}, {out + first, len - first}};
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 2, .msg_name = to, .msg_namelen = to_len};
    int flags = (draw(2) ? MSG_DONTWAIT : 0) | (draw(4) ? 0 : MSG_CONFIRM);
    switch (how) {
    case 0:
        if (!to) return told(write(fd, out, len));
        // fall through
    case 1:
        if (!to && len) return told(writev(fd, pieces, 2));
        // fall through
    case 2: return told(sendmsg(fd, &message, flags));
    case 3: {
        struct mmsghdr many[MESSAGES] = {};
        struct iovec each[MESSAGES];
        for (int i = 0; i < MESSAGES; i++) {
            each[i] = (struct iovec){out, lens[i]};
            many[i].msg_hdr = (struct msghdr){.msg_iov = each + i, .msg_iovlen = 1, .msg_name = to, .msg_namelen = to_len};
        }
        return told(sendmmsg(fd, many, MESSAGES, flags));
    }
    default: return told(sendto(fd, out, len, flags, to ? &to->any : NULL, to ? to_len : 0));
    }
}

static long length(void) { return draw(8) == 0 ? 0 : draw(12) == 0 ? draw(65000) : draw(3) ? draw(300) : draw(3000); }

// AF_UNIX: its peer has gone, and the kernel forgets that and what has come.
static void send_to_none(struct one *from) {
    printf("refused %d: %ld, %ld\n", index_of(from), told(send(from->fds[0], out, 9, MSG_DONTWAIT)), told(send(from->fds[0], out, 9, 0)));
    forget(from);
    from->peer = -1;
}

static void send_one(struct one *from) {
    struct one *to = &all[draw(SOCKETS)];
    int to_peer = draw(2), to_dead = !to_peer && draw(12) == 0, mapped = draw(2), how = draw(6);
    if (to_peer && from->peer == GONE && is_local(from->kind)) return send_to_none(from);
    if (to_peer && (from->peer < 0 || from->peer == GONE)) return;
    if (to_peer) to = &all[from->peer];
    if (!to->kind || is_local(to->kind) != is_local(from->kind)) return;
    union address at;
    socklen_t len = place_of(&at, from, to, mapped, to_dead ? dead : to->port);
    long lens[MESSAGES], bytes = 0;
    for (int i = 0; i < MESSAGES; i++) {
        lens[i] = length();
        if (is_local(to->kind)) lens[i] %= LOCAL_LEN;
        bytes += lens[i] + 1000;
    }
    if (to->bytes + bytes > ROOM || to->waiting + MESSAGES > (is_local(to->kind) ? LOCAL_MOST : MOST)) return;
    for (int i = 0; i < 3000; i++) out[i] = (unsigned char)(serial + i * 7);
    serial += 13;
    if (!to_dead && !to->port) return;
    if (from->kind == 66 && mapped) return;
    long sent = send_by(one_fd(from), lens[0], to_peer ? NULL : &at, len, how, lens);
    if (!from->port && !is_local(from->kind)) from->port = port_of(from->fds[0]);
    long count = how == 3 ? sent : sent >= 0;
    for (int i = 0; i < count && !to_dead; i++) {
        to->from[index_of(from)]++;
        to->waiting++;
        to->bytes += lens[i] + 1000;
    }
    printf("send %d > %d %d%d %d, %ld: %ld\n", index_of(from), index_of(to), to_peer, to_dead, how, lens[0], sent);
}

static void connect_one(struct one *one) {
    struct one *to = &all[draw(SOCKETS)];
    if (one->registered && one->events & EPOLLET) return;
    // The kernel forgets what has come from a former peer, which hears of that.
    if (is_local(one->kind)) drain(one);
    if (draw(3) == 0) {
        struct sockaddr none = {.sa_family = AF_UNSPEC};
        printf("unconnect %d: %ld\n", index_of(one), told(connect(one->fds[0], &none, sizeof none)));
        one->peer = -1;
        if (!is_local(one->kind)) one->port = port_of(one->fds[0]);
        return;
    }
    if (!to->kind || !to->port || to == one || is_local(one->kind) != is_local(to->kind)) return;
    int four = to->kind == 4 || to->kind == 40;
    if (!is_local(to->kind) && (four ? one->kind == 66 || one->kind == 6 : !is_six(one->kind))) return;
    // What hears everywhere has one address from now on.
    union address at;
    socklen_t len = place_of(&at, one, to, four, to->port);
    long result = told(connect(one_fd(one), &at.any, len));
    if (result == 0) one->peer = index_of(to), one->was_connected = 1;
    if (!is_local(one->kind)) one->port = port_of(one->fds[0]);
    len = sizeof at;
    long named = told(getpeername(one->fds[0], &at.any, &len));
    printf("connect %d > %d: %ld, %ld %d\n", index_of(one), index_of(to), result, named, named ? 0 : who(&at, len));
}

static int readiness(short events, short wanted) { return events & (wanted | POLLERR | POLLHUP | POLLNVAL); }

static void look(struct one *one) {
    int fd = one_fd(one);
    if (draw(2)) {
        struct pollfd polled = {.fd = fd, .events = (draw(2) ? POLLIN : 0) | (draw(2) ? POLLOUT : 0)};
        int ready = poll(&polled, 1, 0);
        printf("poll %d: %d %x\n", index_of(one), ready, readiness(polled.revents, polled.events));
        return;
    }
    fd_set reads, writes;
    FD_ZERO(&reads);
    FD_ZERO(&writes);
    FD_SET(fd, &reads);
    FD_SET(fd, &writes);
    struct timeval none = {0};
    int ready = select(fd + 1, &reads, &writes, NULL, &none);
    printf("select %d: %d %d %d\n", index_of(one), ready, FD_ISSET(fd, &reads), FD_ISSET(fd, &writes));
}

static void ask(struct one *one) {
    int fd = one_fd(one), value = 0;
    socklen_t len = sizeof value;
    if (draw(2)) {
        if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &len)) die("getsockopt");
        printf("error %d: %d\n", index_of(one), value);
    } else if (senders(one) < 2) {
        if (ioctl(fd, FIONREAD, &value)) die("FIONREAD");
        printf("next %d: %d\n", index_of(one), value);
    }
}

static void control_epoll(struct one *one) {
    int what = one->registered ? draw(3) ? EPOLL_CTL_MOD : EPOLL_CTL_DEL : EPOLL_CTL_ADD;
    unsigned mode = draw(3);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0x100000000 + index_of(one)};
    // An error of one that is connected is an edge for what there is to read, too.
    if (mode == 1 && !one->was_connected) event.events |= EPOLLET;
    if (mode == 2) event.events |= EPOLLONESHOT;
    if (mode == 0 && draw(3) == 0) event.events |= EPOLLOUT;
    long result = told(epoll_ctl(epoll, what, one->fds[0], &event));
    one->registered = what != EPOLL_CTL_DEL;
    one->events = event.events;
    printf("control %d %d %x: %ld\n", index_of(one), what, event.events, result);
}

static int by_data(const void *a, const void *b) {
    uint64_t x = ((struct epoll_event *)a)->data.u64, y = ((struct epoll_event *)b)->data.u64;
    return x < y ? -1 : x > y;
}

static void wait_epoll(void) {
    struct epoll_event events[16];
    int count = epoll_wait(epoll, events, 8, 0);
    // What only the kernel knows may come a little later than what rings have.
    usleep(40);
    struct epoll_event later[8];
    int more = epoll_wait(epoll, later, 8, 0);
    for (int i = 0; i < more; i++) {
        int same = 0;
        while (same < count && events[same].data.u64 != later[i].data.u64) same++;
        if (same == count) events[count++] = later[i];
        else events[same].events |= later[i].events;
    }
    if (count > 1) qsort(events, count, sizeof *events, by_data);
    printf("wait: %d", count);
    for (int i = 0; i < count; i++) printf(" %lx:%x", (long)events[i].data.u64, events[i].events);
    printf("\n");
}

// A child that waits for one more; or has the time run out.
static void in_child(struct one *one) {
    int fd = one->fds[0], how = draw(3);
    // One that hears IPv4 and IPv6 no longer does after it was connected.
    if (senders(one) > 1 || one->nonblock || !one->port || one->was_connected) return;
    fflush(stdout);
    pid_t child = fork();
    if (child < 0) die("fork");
    if (child == 0) {
        unsigned sum = 0;
        struct timeval limit = {.tv_usec = 20000}, never = {0};
        for (long got = 0; how && got != LAST;) sum = sum * 31 + sum_of(in, got = recv(fd, in, sizeof in, 0));
        if (!how) {
            while (recv(fd, in, sizeof in, MSG_DONTWAIT) >= 0 || errno != EAGAIN) {}
            setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
            sum = told(recv(fd, in, sizeof in, 0));
            setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &never, sizeof never);
        }
        printf("child %d: %x\n", how, sum);
        fflush(stdout);
        _exit(0);
    }
    if (how) {
        usleep(draw(2) * 300);
        int family = is_local(one->kind) ? AF_UNIX : is_six(one->kind) ? AF_INET6 : AF_INET, other = socket(family, SOCK_DGRAM, 0);
        union address at;
        socklen_t len = place_of(&at, one, one, 0, one->port);
        if (sendto(other, out, LAST, 0, &at.any, len) != LAST) die("sendto");
        close(other);
    }
    int status;
    waitpid(child, &status, 0);
    forget(one);
    printf("ended %d\n", status);
}

// Another descriptor for the same: a copy, or one that has been sent by a message.
static void copy(struct one *one) {
    if (one->count == COPIES) return;
    int fd = one_fd(one), got;
    if (draw(3)) {
        got = draw(2) ? dup(fd) : fcntl(fd, F_DUPFD_CLOEXEC, 0);
    } else {
        char control[CMSG_SPACE(sizeof fd)] = {}, byte = 0;
        struct iovec piece = {&byte, 1};
        struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        *header = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
        if (sendmsg(passing[0], &message, 0) != 1) die("sendmsg");
        if (recvmsg(passing[1], &message, 0) != 1) die("recvmsg");
        memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof got);
    }
    one->fds[one->count++] = got;
    printf("copy %d: %d\n", index_of(one), got);
}

static void set(struct one *one) {
    int fd = one_fd(one), on = draw(2);
    switch (draw(6)) {
    case 0: {
        int flags = fcntl(fd, F_GETFL);
        one->nonblock = on;
        printf("mode %d: %ld\n", on, told(fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK)));
        return;
    }
    case 1: printf("mode %d: %ld\n", one->nonblock = on, told(ioctl(fd, FIONBIO, &on))); return;
    case 2: printf("broadcast: %ld\n", told(setsockopt(fd, SOL_SOCKET, SO_BROADCAST, &on, sizeof on))); return;
    case 3:
        // Rarely, since it is for good. What is in a ring then comes without.
        if (draw(4) || one->waiting) return;
        printf("told %d: %ld\n", on, told(setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof on)));
        return;
    default: {
        int ttl = 1 + draw(60);
        printf("ttl: %ld\n", told(setsockopt(fd, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl)));
    }
    }
}

// More than there is room for.
static void overflow(struct one *one) {
    // A ring may be less than what the kernel has been told to hold.
    if (!one->port || one->was_connected || one->is_wide || is_local(one->kind)) return;
    drain(one);
    int six = is_six(one->kind), len = draw(3) ? draw(3000) : draw(40000), count = 0, warm = draw(2);
    int other = socket(six ? AF_INET6 : AF_INET, SOCK_DGRAM, 0);
    union address at;
    if (connect(other, &at.any, place(&at, six, 0, 0, one->port))) die("connect");
    for (int i = 0; i < 3 * warm; i++) {
        if (send(other, out, 10, 0) != 10) die("send");
        if (recv(one->fds[0], in, sizeof in, MSG_DONTWAIT) != 10) die("recv");
        recv(one->fds[0], in, sizeof in, MSG_DONTWAIT);
    }
    for (int i = 0; i < 700; i++)
        if (send(other, out, len, 0) != len) die("send");
    while (recv(one->fds[0], in, sizeof in, MSG_DONTWAIT) >= 0) count++;
    close(other);
    printf("of 700 of %d: %d\n", len, count);
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    state = strtoull(argv[1], NULL, 10) * 0x9e3779b97f4a7c15 + 1;
    for (int i = 0; i < LEN; i++) out[i] = (unsigned char)i;
    epoll = epoll_create1(0);
    if (epoll < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, passing) || !mkdtemp(folder)) die("begin");
    // A port that nobody has, and nobody is given.
    int holder = socket(AF_INET, SOCK_DGRAM, 0);
    union address at;
    if (connect(holder, &at.any, place(&at, 0, 0, 0, 9))) die("connect");
    dead = 9;
    close(holder);
    for (long steps = atol(argv[2]); steps > 0; steps--) {
        struct one *one = &all[draw(SOCKETS)];
        int what = draw(100);
        if (!one->kind) open_one(one);
        else if (what < 40) send_one(one);
        else if (what < 65) receive(one);
        else if (what < 72) look(one);
        else if (what < 77) ask(one);
        else if (what < 81) connect_one(one);
        else if (what < 85) control_epoll(one);
        else if (what < 91) wait_epoll();
        else if (what < 92) in_child(one);
        else if (what < 94) copy(one);
        else if (what < 96) set(one);
        else if (what < 97) overflow(one);
        else if (what < 98) drain(one);
        else close_one(one);
    }
    for (int i = 0; i < SOCKETS; i++)
        if (all[i].kind) close_one(&all[i]);
    if (rmdir(folder)) die(folder);
    return 0;
}
