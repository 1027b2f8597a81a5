/* A disk whose syncs take longer: preloaded into members by `bench shards` (disk.rs compiles it).
 *
 * The sync is a real one; then the thread that asked for it sleeps. So a member pays for each sync and not for each byte, as with a disk
 * across a network or one that has no cache with a battery. How much longer, in microseconds, comes from the environment:
 * BENCH_SYNC_DELAY_US. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <time.h>

static int (*real_fsync)(int), (*real_fdatasync)(int);
static struct timespec delay;

__attribute__((constructor)) static void start(void) {
  real_fsync = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
  real_fdatasync = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
  const char *given = getenv("BENCH_SYNC_DELAY_US");
  long microseconds = given ? atol(given) : 0;
  delay = (struct timespec){.tv_sec = microseconds / 1000000, .tv_nsec = microseconds % 1000000 * 1000};
}

/* What the sync said goes on to the caller, errno too. */
static int late(int result) {
  int error = errno;
  struct timespec left = delay;
  while (nanosleep(&left, &left) && errno == EINTR) {
  }
  errno = error;
  return result;
}

int fsync(int file) { return late(real_fsync(file)); }
int fdatasync(int file) { return late(real_fdatasync(file)); }
