// Of the random steps, those on pipes. Included by steps.c.
// What the pipe is full of is pages, not bytes: a piece that does not fit behind the last begins one.
static int fits(struct pair *pair, long len) {
    if (pair->under_way[0] == 0) pair->pieces[0] = 0;
    pair->pieces[0] += len / 4096 + 1;
    return pair->pieces[0] < PAGES && pair->under_way[0] + len <= UNDER_WAY;
}

static long write_pipe(int fd, long len, int how) {
    long first = draw(len + 1);
    struct iovec pieces[2] = {{out, first}, {out + first, len - first}};
    off_t from = 64 + serial % 256 * 16384, start = from;
    switch (how) {
    case 0: return told(writev(fd, pieces, 2));
    case 1: return told(pwritev2(fd, pieces, 2, -1, 0));
    case 2: return told(pwritev2(fd, pieces, 2, -1, RWF_NOWAIT));
    // These move pages, and not always all.
    case 3:
        if (pwrite(file, out, len, start) != len) die("pwrite");
        return told(draw(2) ? sendfile(fd, file, &from, len) : splice(file, &from, fd, NULL, len, 0));
    default: return told(write(fd, out, len));
    }
}

static long read_pipe(int fd, long len, int how) {
    long first = draw(len + 1);
    struct iovec pieces[2] = {{in, first}, {in + first, len - first}};
    switch (how) {
    case 0: return told(readv(fd, pieces, 2));
    case 1: return told(preadv2(fd, pieces, 2, -1, 0));
    case 2: return told(preadv2(fd, pieces, 2, -1, RWF_NOWAIT));
    default: return told(read(fd, in, len));
    }
}

// What moves without being read, of which the kernel says how much: up to a page of it is compared.
static void move_from_pipe(struct pair *pair, int fd) {
    int other[2], how = draw(3);
    pair->broken = 1;
    if (pipe2(other, O_NONBLOCK)) die("pipe2");
    long most = 1 + draw(500), got;
    loff_t at = 0;
    if (most > pair->under_way[0]) most = pair->under_way[0];
    if (how == 0) got = told(tee(fd, other[1], most, SPLICE_F_NONBLOCK));
    else if (how == 1) got = told(splice(fd, NULL, other[1], NULL, most, SPLICE_F_NONBLOCK));
    else got = told(splice(fd, NULL, moved, &at, most, SPLICE_F_NONBLOCK));
    if (got > 0 && how) pair->under_way[0] -= got;
    if (got > 0 && (how < 2 ? read(other[0], in, got) : pread(moved, in, got, 0)) != got) die("moved");
    // In how many pieces it is nobody's business: the first byte is what matters.
    printf("move %d: %d %d\n", how, got > 0 ? 1 : (int)got, got > 0 ? in[0] : 0);
    while (how && got > 0 && got < most && pair->under_way[0] > 0) {
        long more = told(read(fd, in, most - got));
        if (more <= 0) break;
        got += more;
        pair->under_way[0] -= more;
    }
    close(other[0]);
    close(other[1]);
}

// By another description of the same pipe, with a mode of its own.
static void reopen_pipe(struct pair *pair, int s, int fd) {
    char name[40];
    sprintf(name, "/proc/self/fd/%d", fd);
    int again = open(name, (s ? O_RDONLY : O_WRONLY) | (draw(2) ? O_NONBLOCK : 0) | O_CLOEXEC);
    long done = 0, len = 1 + draw(200);
    if (s == 0 && fits(pair, len) && pair->sides[1].count) done = told(write(again, out, len)), pair->under_way[0] += len;
    if (s == 1 && pair->under_way[0]) done = told(read(again, in, len)), pair->under_way[0] -= done;
    printf("again: %d %ld %u\n", again, done, s ? sum_of(in, done) : 0);
    close(again);
}

// A child that reads all and a little that is yet to come, writes, reads what is there, or is another program.
static void pipe_in_child(struct pair *pair, int s) {
    if (!pair->sides[0].count || !pair->sides[1].count) return;
    int writer = one(&pair->sides[0]), reader = one(&pair->sides[1]), how = draw(4);
    long len = pair->under_way[0], done = 0;
    char count[24];
    sprintf(count, "%ld", len / 2);
    if (how == 1 && !fits(pair, 10)) return;
    fflush(stdout);
    pid_t child = fork();
    if (child < 0) die("fork");
    if (child == 0) {
        if (how == 3) {
            dup2(reader, 0);
            execl("/usr/bin/head", "head", "-c", count, NULL);
            _exit(9);
        }
        int fl = fcntl(reader, F_GETFL);
        if (how == 0) fcntl(reader, F_SETFL, fl & ~O_NONBLOCK);
        while (how == 0 && done < len + 100) {
            long got = read(reader, in, len + 100 - done);
            if (got <= 0) break;
            done += got;
        }
        if (how == 0) fcntl(reader, F_SETFL, fl);
        if (how == 1) done = write(writer, out, 10);
        if (how == 2 && len >= 10) done = read(reader, in, 10);
        end_child(3, writer, done);
    }
    int status;
    if (how == 0) {
        usleep(draw(2) * 300);
        if (write(writer, out, 100) != 100) die("write");
        pair->under_way[0] = 0;
    }
    waitpid(child, &status, 0);
    if (how == 1) pair->under_way[0] += 10;
    if (how == 2 && len >= 10) pair->under_way[0] -= 10;
    if (how == 3) pair->under_way[0] -= len / 2;
    printf(" ended %d %d\n", s, status);
}

static void step_pipe(struct pair *pair, int s, int fd, int what) {
    struct side *side = &pair->sides[s];
    int is_writer = s == 0, is_open = pair->sides[1 - s].count;
    if (what < 30 && is_writer) {
        long len = draw(4) ? 1 + draw(200) : 1 + draw(LEN);
        if (!fits(pair, len)) return;
        for (long i = 0; i < len; i++) out[i] = (unsigned char)(serial + i * 7);
        serial += 13;
        int how = draw(20);
        if (how == 3 && draw(3)) how = 4;
        if (how == 3) pair->broken = 1;
        if (how == 2 && pair->broken) how = 0;
        long sent = write_pipe(fd, len, how);
        if (sent > 0 && is_open) pair->under_way[0] += sent;
        printf("write %d %ld: %ld\n", how, len, sent);
    } else if (what < 30) {
        printf("wrong: %ld %ld\n", told(write(fd, out, 3)), told(send(fd, out, 3, 0)));
    } else if (what < 60 && is_writer) {
        printf("wrong: %ld %ld %ld\n", told(read(fd, in, 3)), told(recv(fd, in, 3, 0)), (long)told(lseek(fd, 0, SEEK_CUR)));
    } else if (what < 60) {
        int how = draw(6), would_wait = pair->under_way[0] == 0 && is_open && !side->nonblock;
        // A pipe that pages were moved to or from does not know of RWF_NOWAIT any more.
        if (would_wait && pair->broken) return;
        if (would_wait) how = 2;
        else if (how == 2 && pair->broken) how = 3;
        long len = 1 + draw(draw(2) ? 300 : LEN), got = read_pipe(fd, len, how);
        if (got > 0) pair->under_way[0] -= got;
        printf("read %d %ld: %ld %u\n", how, len, got, sum_of(in, got));
    } else if (what < 97) {
        if (draw(2)) pipe_in_child(pair, s);
    } else if (what < 98) {
        int size = 65536 << draw(3);
        printf("size: %ld %ld\n", draw(2) ? told(fcntl(fd, F_SETPIPE_SZ, size)) : 0, told(fcntl(fd, F_GETPIPE_SZ)));
    } else if (!is_writer && pair->under_way[0] && draw(4) == 0) {
        move_from_pipe(pair, fd);
    } else if (draw(4) == 0) {
        reopen_pipe(pair, s, fd);
    }
}
