/* The preset `zscore` (ewma 1, threshold 1, damp_release 1, envelope 1) by hand: what the generated kernel has to be
   compared with. All branches are choices, state in one flat buffer, as a C programmer would write it for lanes.
   Parameters in the order of declaration; one column per candidate. */
#include <math.h>
#include <string.h>
#define L 32
#define P(row) buf[(row) * L + l]
#define S(row) buf[(37 + (row)) * L + l]
#define SEL(test, yes, no) ((test) ? (yes) : (no))
#define MIN(a, b) ((b) < (a) ? (b) : (a))
#define MAX(a, b) ((b) > (a) ? (b) : (a))

enum { WINDOW, LIMIT, ALARM, WARMUP,
       CUT, HOLD, RELEASE,
       MIN_SCALE, DROP, RISE, MAX_DAMPED, REST, ENERGY, IN_A_ROW, SKIPS, ROLLBACKS, COOLDOWN, PARAMETERS };

static void steps(const double *restrict seen, long rows, double *restrict buf) {
  for (long t = 0; t < rows; t++) {
    /* a row's telemetry once per lane: gcc 12 does not vectorise a choice whose test is the same in all lanes */
    for (int l = 0; l < L; l++) { S(32) = seen[t]; S(34) = seen[rows + t]; }
#pragma omp simd
    for (int l = 0; l < L; l++) {
      const double loss = S(32), bad = S(34);
      /* sensor */
      double n = S(0), mean = S(1), variance = S(2);
      int in = (-1e12 <= loss) & (loss <= 1e12);
      double sd = sqrt(variance), from = loss - mean, residual = SEL(n > 0.0, from, 0.0), q = residual / sd;
      double z0 = SEL((sd > 0.0) & (n >= 2.0), q, 0.0), zz = SEL(in, z0, NAN);
      double g1 = 1.0 / (n + 1.0), g2 = 2.0 / (P(WINDOW) + 1.0), gain = MAX(g1, g2);
      double mean0 = mean + gain * residual, mean1 = SEL(n > 0.0, mean0, loss);
      double variance1 = (1.0 - gain) * (variance + gain * residual * residual);
      S(0) = SEL(in, n + 1.0, n); S(1) = SEL(in, mean1, mean); S(2) = SEL(in, variance1, variance);

      /* analyzer */
      double count = MIN(S(11) + 1.0, P(WARMUP) + 1.0), held = MAX(0.0, S(12) - 1.0);
      int broken = bad == 1.0, warm = count <= P(WARMUP);
      double struck = SEL(zz > P(LIMIT), P(ALARM), held), open_ = SEL(warm, 0.0, struck);
      double quiet = SEL(open_ > 0.0, 3.0, 1.0), named = SEL(warm, 0.0, quiet), reg = SEL(broken, 8.0, named);
      S(11) = count; S(12) = SEL(broken, held, open_);

      /* policy */
      double scale0 = S(17), since = MIN(S(16) + 1.0, P(HOLD));
      int cutting = (reg == 3.0) | (reg == 4.0) | (reg == 5.0), still = (reg == 2.0) | (reg == 7.0);
      int cut = cutting & (since >= P(HOLD)), skip = reg == 8.0;
      double back = MIN(1.0, scale0 * P(RELEASE)), cut_to = scale0 * P(CUT);
      double want = SEL(cut, cut_to, scale0); want = SEL(cutting | still | skip, want, back);
      S(16) = SEL(cut, 0.0, since);

      /* envelope; this policy never asks for a rollback */
      double damped = S(18), releasing = S(19), rest = S(20), energy = S(21), credit = S(22), row_ = S(23), sc = S(24);
      credit = MIN(P(ENERGY), credit + P(ENERGY) / 1000.0); sc = MIN(P(SKIPS), sc + P(SKIPS) / 1000.0);
      rest = MAX(0.0, rest - 1.0);
      want = SEL(want == want, want, 1.0); want = SEL(want < P(MIN_SCALE), P(MIN_SCALE), want); want = MIN(1.0, want);
      int granted = skip & (row_ < P(IN_A_ROW)) & (sc >= 1.0);
      row_ = SEL(granted, row_ + 1.0, 0.0); sc = SEL(granted, sc - 1.0, sc);
      int poor = credit < (1.0 - want) * (1.0 - want);
      double why = SEL(damped >= P(MAX_DAMPED), 4.0, SEL(poor, 5.0, releasing));
      releasing = SEL((releasing == 0.0) & (scale0 < 1.0), why, releasing);
      int forced = releasing != 0.0;
      double kept = MAX(want, scale0), resting = SEL((want < 1.0) & ((rest > 0.0) | poor), kept, want);
      want = SEL(forced, 1.0, resting);
      double fall = scale0 - P(DROP), climb = scale0 + P(RISE), to = SEL(want > climb, climb, want);
      double scale = SEL(want < fall, fall, to);
      scale = MAX(P(MIN_SCALE), scale); scale = MIN(1.0, scale);
      int over = forced & (scale >= 1.0);
      S(20) = SEL(over, P(REST), rest); S(19) = SEL(over, 0.0, releasing);
      double effort = (1.0 - scale) * (1.0 - scale);
      S(17) = scale; S(18) = SEL(scale < 1.0, damped + 1.0, 0.0); S(21) = energy + effort;
      S(22) = credit - effort; S(23) = row_; S(24) = sc;

      /* summary */
      int bad_ = (reg != 0.0) & (reg != 1.0) & (reg != 7.0);
      S(25) += SEL(bad_, 1.0, 0.0); S(26) += SEL(reg != S(27), 1.0, 0.0); S(27) = reg;
      S(28) += SEL(scale < 1.0, 1.0, 0.0); S(29) = MIN(S(29), scale); S(30) += SEL(granted, 1.0, 0.0);
      double start = SEL((S(31) < 0.0) & bad_, reg, S(31)); S(31) = start;
    }
  }
}

void replay(const double *seen, const double *parameters, double *summary, long rows, long candidates) {
  static double buf[(37 + 35) * L];
  static const int from[8] = {21, 25, 26, 27, 28, 29, 30, 31};
  for (long c = 0; c < candidates; c += L) {
    memset(buf, 0, sizeof buf);
    for (int p = 0; p < PARAMETERS; p++)
      for (int l = 0; l < L; l++) buf[p * L + l] = parameters[p * candidates + c + l];
    for (int l = 0; l < L; l++) {
      S(16) = P(HOLD); S(17) = 1.0; S(22) = P(ENERGY); S(24) = P(SKIPS);
      S(26) = -1.0; S(27) = -1.0; S(29) = 1.0; S(31) = -1.0;
    }
    steps(seen, rows, buf);
    for (int s = 0; s < 8; s++)
      for (int l = 0; l < L; l++) summary[s * candidates + c + l] = S(from[s]);
  }
}
