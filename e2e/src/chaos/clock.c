/* A process's monotonic clock at another rate: preloaded into a member by the chaos tests (clock.rs compiles it).
 *
 * Reading the clock is only half of it: Rust's standard library turns a wait of so long into a moment of CLOCK_MONOTONIC and hands that
 * to futex(2), so the kernel must be given the moment that the process means. Relative waits become shorter or longer alike.
 * Rate in parts per million from the environment: CHAOS_CLOCK_PPM. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const int64_t SECOND = 1000000000;

static int (*real_clock_gettime)(clockid_t, struct timespec *);
static long (*real_syscall)(long, ...);
static int (*real_epoll_wait)(int, struct epoll_event *, int, int);
static int64_t ppm, base;

static int64_t nanoseconds(const struct timespec *t) { return t->tv_sec * SECOND + t->tv_nsec; }

static struct timespec timespec_of(int64_t ns) {
  if (ns < 0) ns = 0;
  return (struct timespec){.tv_sec = ns / SECOND, .tv_nsec = ns % SECOND};
}

/* A length of the process's time in the kernel's, and back. */
static int64_t to_kernel(int64_t length) { return (int64_t)((__int128)length * 1000000 / (1000000 + ppm)); }
static int64_t to_process(int64_t length) { return (int64_t)((__int128)length * (1000000 + ppm) / 1000000); }

__attribute__((constructor)) static void start(void) {
  real_clock_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  real_syscall = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
  real_epoll_wait = (int (*)(int, struct epoll_event *, int, int))dlsym(RTLD_NEXT, "epoll_wait");
  const char *rate = getenv("CHAOS_CLOCK_PPM");
  ppm = rate ? atoll(rate) : 0;
  struct timespec now;
  real_clock_gettime(CLOCK_MONOTONIC, &now);
  base = nanoseconds(&now);
}

static int skewed(clockid_t clock) {
  return clock == CLOCK_MONOTONIC || clock == CLOCK_MONOTONIC_RAW || clock == CLOCK_MONOTONIC_COARSE || clock == CLOCK_BOOTTIME;
}

int clock_gettime(clockid_t clock, struct timespec *out) {
  if (!real_clock_gettime) start();
  int result = real_clock_gettime(clock, out);
  /* BOOTTIME may be ahead of MONOTONIC by the time that the machine slept; that part is carried along. */
  if (result == 0 && skewed(clock)) *out = timespec_of(base + to_process(nanoseconds(out) - base));
  return result;
}

long syscall(long number, ...) {
  if (!real_syscall) start();
  va_list list;
  va_start(list, number);
  long a[6];
  for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
  va_end(list);
  struct timespec limit;
  if (number == SYS_futex && a[3]) {
    int operation = (int)a[1] & FUTEX_CMD_MASK;
    const struct timespec *given = (const struct timespec *)a[3];
    if (operation == FUTEX_WAIT) {
      limit = timespec_of(to_kernel(nanoseconds(given)));
      a[3] = (long)&limit;
    } else if (operation == FUTEX_WAIT_BITSET && !((int)a[1] & FUTEX_CLOCK_REALTIME)) {
      limit = timespec_of(base + to_kernel(nanoseconds(given) - base));
      a[3] = (long)&limit;
    }
  }
  return real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

int epoll_wait(int epoll, struct epoll_event *events, int count, int timeout) {
  if (!real_epoll_wait) start();
  /* Rounded up: a wait of nothing in a loop would be no wait. */
  if (timeout > 0) timeout = (int)to_kernel(timeout) + 1;
  return real_epoll_wait(epoll, events, count, timeout);
}
