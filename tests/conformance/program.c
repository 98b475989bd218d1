/*
 * Any of the C programs, with more time for its cases: an emulated machine on a busy host takes longer than those
 * that they were written for. PROGRAM is its source.
 */
#include <kselftest_harness.h>
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT 300 /* seconds; 30 upstream */
#include PROGRAM
