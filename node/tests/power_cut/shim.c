/*
 * Records what a process does to the files below one directory, for power-cut replay. Built and preloaded by the test.
 *
 * POWER_CUT_ROOT   the directory
 * POWER_CUT_TRACE  the file that records are appended to
 * POWER_CUT_LIE    syncs of files whose path holds this are neither done nor recorded: a disk that lies
 *
 * A record is six little-endian words (magic and operation, inode, two arguments, lengths of path and data), the path, the data.
 * Whatever changes a file or a name happens under one lock together with its record, so the trace has their true order. A sync
 * says where the trace stood when it began: only what was recorded before is made durable by it.
 *
 * SIGUSR2 kills the process as soon as nothing is done that is not recorded yet. A plain SIGKILL may come between the two, and what
 * goes on with the files afterwards builds on something that the trace does not have.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CREATE = 1, WRITE, TRUNCATE, SYNC, RENAME, UNLINK, MKDIR };
#define MAGIC 0x50434c47u
#define FDS 65536
#define FOREIGN 1

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[4096], lie[256];
static size_t root_len;
static int trace = -1;
static uint64_t position;
static volatile sig_atomic_t dying;
/* Inode of each open file below the root; FOREIGN for others, 0 if not known yet. */
static uint64_t inodes[FDS];
static unsigned char lies[FDS];

static ssize_t (*real_writev)(int, const struct iovec *, int);
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void die_soon(int signal) {
    (void)signal;
    dying = 1;
}

/* Lets go of the lock: everything done is recorded. */
static void whole(void) {
    if (dying) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void begin(void) {
    const char *to = getenv("POWER_CUT_TRACE"), *below = getenv("POWER_CUT_ROOT"), *liar = getenv("POWER_CUT_LIE");
    real_writev = REAL(writev);
    if (!to || !below) return;
    snprintf(root, sizeof root, "%s", below);
    root_len = strlen(root);
    if (liar) snprintf(lie, sizeof lie, "%s", liar);
    trace = REAL(open)(to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (trace < 0) abort();
    position = (uint64_t)lseek(trace, 0, SEEK_END);
    inodes[trace] = FOREIGN;
    struct sigaction action = {.sa_handler = die_soon, .sa_flags = SA_RESTART};
    sigaction(SIGUSR2, &action, NULL);
}

static void record(uint32_t op, uint64_t inode, uint64_t a, uint64_t b, const char *path, const void *data, size_t len) {
    size_t path_len = path ? strlen(path) : 0;
    uint64_t head[6] = {MAGIC | (uint64_t)op << 32, inode, a, b, path_len, len};
    struct iovec parts[3] = {{head, sizeof head}, {(void *)path, path_len}, {(void *)data, len}};
    size_t all = sizeof head + path_len + len;
    if (real_writev(trace, parts, 3) != (ssize_t)all) abort();
    position += all;
}

/* The absolute path, if it lies below the root. */
static int ours(int dir, const char *path, char *out) {
    if (trace < 0 || !path) return 0;
    if (path[0] == '/') {
        if (snprintf(out, 4096, "%s", path) >= 4096) return 0;
    } else {
        char at[4096], link[64];
        if (dir == AT_FDCWD) {
            if (!getcwd(at, sizeof at)) return 0;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
            ssize_t n = readlink(link, at, sizeof at - 1);
            if (n < 0) return 0;
            at[n] = 0;
        }
        if (snprintf(out, 4096, "%s/%s", at, path) >= 4096) return 0;
    }
    return strncmp(out, root, root_len) == 0 && (out[root_len] == '/' || out[root_len] == 0);
}

/* With a `$` at its end, only what ends so: a directory, and nothing in it. */
static int is_lie(const char *path) {
    size_t len = strlen(lie), of = strlen(path);
    if (len > 0 && lie[len - 1] == '$')
        return of >= len - 1 && strncmp(path + of - (len - 1), lie, len - 1) == 0;
    return len > 0 && strstr(path, lie) != NULL;
}

/* The inode behind a descriptor, or FOREIGN. */
static uint64_t inode_of(int fd) {
    if (trace < 0 || fd < 0 || fd >= FDS) return FOREIGN;
    if (inodes[fd] == 0) {
        char link[64], path[4096];
        struct stat st;
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, path, sizeof path - 1);
        path[n < 0 ? 0 : n] = 0;
        int mine = strncmp(path, root, root_len) == 0 && fstat(fd, &st) == 0;
        inodes[fd] = mine ? st.st_ino : FOREIGN;
        lies[fd] = mine && is_lie(path);
    }
    return inodes[fd];
}

static int opened(int (*call)(int, const char *, int, mode_t), int dir, const char *path, int flags, mode_t mode) {
    char full[4096];
    struct stat st;
    if (!ours(dir, path, full)) {
        int fd = call(dir, path, flags, mode);
        if (fd >= 0 && fd < FDS) inodes[fd] = trace < 0 ? 0 : FOREIGN;
        return fd;
    }
    pthread_mutex_lock(&lock);
    int fresh = (flags & O_CREAT) && fstatat(dir, path, &st, 0) != 0;
    int fd = call(dir, path, flags, mode);
    if (fd >= 0 && fd < FDS && fstat(fd, &st) == 0) {
        inodes[fd] = st.st_ino;
        lies[fd] = is_lie(full);
        if (fresh) record(CREATE, st.st_ino, 0, 0, full, NULL, 0);
        else if (flags & O_TRUNC) record(TRUNCATE, st.st_ino, 0, 0, NULL, NULL, 0);
    }
    int saved = errno;
    whole();
    errno = saved;
    return fd;
}

static int call_open(int dir, const char *path, int flags, mode_t mode) {
    return REAL(openat)(dir, path, flags, mode);
}

static mode_t mode_of(int flags, va_list args) {
    return flags & (O_CREAT | O_TMPFILE) ? (mode_t)va_arg(args, int) : 0;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list args; \
        va_start(args, flags); \
        mode_t mode = mode_of(flags, args); \
        va_end(args); \
        return opened(call_open, AT_FDCWD, path, flags, mode); \
    }
#define OPENAT(name) \
    int name(int dir, const char *path, int flags, ...) { \
        va_list args; \
        va_start(args, flags); \
        mode_t mode = mode_of(flags, args); \
        va_end(args); \
        return opened(call_open, dir, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

int close(int fd) {
    if (fd >= 0 && fd < FDS && fd != trace) inodes[fd] = 0;
    return REAL(close)(fd);
}

/* A write at `at`, or at the descriptor's own position if that is -1. */
static ssize_t written(int fd, const struct iovec *parts, int count, off_t at) {
    if (inode_of(fd) == FOREIGN) return at < 0 ? real_writev(fd, parts, count) : REAL(pwritev)(fd, parts, count, at);
    pthread_mutex_lock(&lock);
    off_t where = at;
    if (at < 0) where = fcntl(fd, F_GETFL) & O_APPEND ? lseek(fd, 0, SEEK_END) : lseek(fd, 0, SEEK_CUR);
    ssize_t done = at < 0 ? real_writev(fd, parts, count) : REAL(pwritev)(fd, parts, count, at);
    int saved = errno;
    ssize_t left = done;
    for (int i = 0; i < count && left > 0; i++) {
        size_t len = parts[i].iov_len < (size_t)left ? parts[i].iov_len : (size_t)left;
        record(WRITE, inodes[fd], (uint64_t)where, 0, NULL, parts[i].iov_base, len);
        where += (off_t)len;
        left -= (ssize_t)len;
    }
    whole();
    errno = saved;
    return done;
}

ssize_t write(int fd, const void *buf, size_t len) {
    struct iovec part = {(void *)buf, len};
    return written(fd, &part, 1, -1);
}
ssize_t writev(int fd, const struct iovec *parts, int count) { return written(fd, parts, count, -1); }
ssize_t pwrite(int fd, const void *buf, size_t len, off_t at) {
    struct iovec part = {(void *)buf, len};
    return written(fd, &part, 1, at);
}
ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t at) { return pwrite(fd, buf, len, at); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) { return written(fd, parts, count, at); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) { return written(fd, parts, count, at); }

static int synced(int (*call)(int), int fd) {
    uint64_t inode = inode_of(fd);
    if (inode == FOREIGN) return call(fd);
    if (lies[fd]) return 0;
    pthread_mutex_lock(&lock);
    uint64_t began = position;
    whole();
    int done = call(fd);
    int saved = errno;
    if (done == 0) {
        pthread_mutex_lock(&lock);
        record(SYNC, inode, began, 0, NULL, NULL, 0);
        whole();
    }
    errno = saved;
    return done;
}
int fsync(int fd) { return synced(REAL(fsync), fd); }
int fdatasync(int fd) { return synced(REAL(fdatasync), fd); }

int ftruncate(int fd, off_t len) {
    uint64_t inode = inode_of(fd);
    if (inode == FOREIGN) return REAL(ftruncate)(fd, len);
    pthread_mutex_lock(&lock);
    int done = REAL(ftruncate)(fd, len), saved = errno;
    if (done == 0) record(TRUNCATE, inode, (uint64_t)len, 0, NULL, NULL, 0);
    whole();
    errno = saved;
    return done;
}
int ftruncate64(int fd, off64_t len) { return ftruncate(fd, len); }

/* Nothing that is tested calls these on the volume. Should that change, the trace would lie: better not to go on. */
int fallocate(int fd, int mode, off_t at, off_t len) {
    if (inode_of(fd) != FOREIGN) abort();
    return REAL(fallocate)(fd, mode, at, len);
}
int fallocate64(int fd, int mode, off64_t at, off64_t len) { return fallocate(fd, mode, at, len); }
int posix_fallocate(int fd, off_t at, off_t len) {
    if (inode_of(fd) != FOREIGN) abort();
    return REAL(posix_fallocate)(fd, at, len);
}

static int renamed(int from_dir, const char *from, int to_dir, const char *to) {
    char a[4096], b[4096];
    if (!ours(from_dir, from, a) || !ours(to_dir, to, b)) return REAL(renameat)(from_dir, from, to_dir, to);
    pthread_mutex_lock(&lock);
    int done = REAL(renameat)(from_dir, from, to_dir, to), saved = errno;
    if (done == 0) record(RENAME, 0, 0, 0, a, b, strlen(b));
    whole();
    errno = saved;
    return done;
}
int rename(const char *from, const char *to) { return renamed(AT_FDCWD, from, AT_FDCWD, to); }
int renameat(int from_dir, const char *from, int to_dir, const char *to) { return renamed(from_dir, from, to_dir, to); }

static int unlinked(int dir, const char *path, int flags) {
    char full[4096];
    if (!ours(dir, path, full)) return REAL(unlinkat)(dir, path, flags);
    pthread_mutex_lock(&lock);
    int done = REAL(unlinkat)(dir, path, flags), saved = errno;
    if (done == 0) record(UNLINK, 0, 0, 0, full, NULL, 0);
    whole();
    errno = saved;
    return done;
}
int unlink(const char *path) { return unlinked(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinked(AT_FDCWD, path, AT_REMOVEDIR); }
int unlinkat(int dir, const char *path, int flags) { return unlinked(dir, path, flags); }

int mkdirat(int dir, const char *path, mode_t mode) {
    char full[4096];
    struct stat st;
    if (!ours(dir, path, full)) return REAL(mkdirat)(dir, path, mode);
    pthread_mutex_lock(&lock);
    int done = REAL(mkdirat)(dir, path, mode), saved = errno;
    if (done == 0 && fstatat(dir, path, &st, 0) == 0) record(MKDIR, st.st_ino, 0, 0, full, NULL, 0);
    whole();
    errno = saved;
    return done;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
