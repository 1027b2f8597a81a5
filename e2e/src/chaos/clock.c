/* A process's monotonic clock at another rate: preloaded into a member by the chaos tests (clock.rs compiles it).
 *
 * Not every program asks libc for the time: rustix calls the kernel's vDSO by itself, and so would read the true clock. So the vDSO's
 * function is replaced in this process's own copy of it (the kernel allows that for debuggers' breakpoints), and libc, which
 * calls the same function, reads the other rate as well.
 *
 * Reading the clock is only half of it: Rust's standard library turns a wait of so long into a moment of CLOCK_MONOTONIC and hands that
 * to futex(2), so the kernel must be given the moment that the process means. Relative waits become shorter or longer alike.
 * Rate in parts per million from the environment: CHAOS_CLOCK_PPM. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const int64_t SECOND = 1000000000;

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

static int skewed(clockid_t clock) {
  return clock == CLOCK_MONOTONIC || clock == CLOCK_MONOTONIC_RAW || clock == CLOCK_MONOTONIC_COARSE || clock == CLOCK_BOOTTIME;
}

/* The system call itself: whatever else tells the time ends here. */
static long true_time(clockid_t clock, struct timespec *out) {
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "0"(SYS_clock_gettime), "D"((long)clock), "S"(out) : "rcx", "r11", "memory");
  return result;
}

/* In place of the vDSO's: 0, or an error's negative number. */
static int time_at_rate(clockid_t clock, struct timespec *out) {
  long result = true_time(clock, out);
  /* BOOTTIME may be ahead of MONOTONIC by the time that the machine slept; that part is carried along. */
  if (result == 0 && skewed(clock)) *out = timespec_of(base + to_process(nanoseconds(out) - base));
  return (int)result;
}

/* Without it the process would live in true time, and nobody would notice. */
static void refuse(const char *what) {
  fprintf(stderr, "clock.so: %s\n", what);
  _exit(97);
}

static void replace_vdso(void) {
  void *vdso = dlopen("linux-vdso.so.1", RTLD_LAZY | RTLD_NOLOAD);
  unsigned char *function = vdso ? dlsym(vdso, "__vdso_clock_gettime") : NULL;
  if (!function) refuse("there is no vDSO with clock_gettime");
  /* mov $time_at_rate, %rax; jmp *%rax */
  unsigned char jump[12] = {0x48, 0xb8, [10] = 0xff, [11] = 0xe0};
  void *target = (void *)time_at_rate;
  memcpy(jump + 2, &target, sizeof target);
  /* All of it at once: the kernel does not let this mapping be split. */
  unsigned long from = 0, to = 0;
  char line[256];
  FILE *maps = fopen("/proc/self/maps", "r");
  while (maps && fgets(line, sizeof line, maps))
    if (strstr(line, "[vdso]") && sscanf(line, "%lx-%lx", &from, &to) == 2) break;
  if (maps) fclose(maps);
  if ((unsigned long)function < from || (unsigned long)function + sizeof jump > to) refuse("the vDSO is not where it is mapped");
  if (mprotect((void *)from, to - from, PROT_READ | PROT_WRITE | PROT_EXEC)) refuse("the vDSO cannot be written to");
  memcpy(function, jump, sizeof jump);
  if (mprotect((void *)from, to - from, PROT_READ | PROT_EXEC)) refuse("the vDSO cannot be protected again");
}

__attribute__((constructor)) static void start(void) {
  real_syscall = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
  real_epoll_wait = (int (*)(int, struct epoll_event *, int, int))dlsym(RTLD_NEXT, "epoll_wait");
  if (base) return;
  const char *rate = getenv("CHAOS_CLOCK_PPM");
  ppm = rate ? atoll(rate) : 0;
  struct timespec now;
  true_time(CLOCK_MONOTONIC, &now);
  base = nanoseconds(&now);
  replace_vdso();
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
