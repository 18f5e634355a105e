/* The default guard (robust_loss 1, hysteresis 1, damp_release 1, envelope 1) by hand: what the generated kernel has to
   be compared with. All branches are choices, state in one flat buffer, as a C programmer would write it for lanes.
   Parameters in the order of declaration; one column per candidate. */
#include <math.h>
#include <string.h>
#define L 32
#define P(row) buf[(row) * L + l]
#define S(row) buf[(37 + (row)) * L + l]
#define SEL(test, yes, no) ((test) ? (yes) : (no))
#define MIN(a, b) ((b) < (a) ? (b) : (a))
#define MAX(a, b) ((b) > (a) ? (b) : (a))

enum { LEVEL, TREND, NOISE, FORGET, CLIP, FAST, SLOW,
       WARMUP, SPIKE, STRESS, DIVERGE, DIVERGE_STEPS, SHARE, GRAD, EXIT, DWELL, RECOVER,
       CUT, HOLD, RELEASE,
       MIN_SCALE, DROP, RISE, MAX_DAMPED, REST, ENERGY, IN_A_ROW, SKIPS, ROLLBACKS, COOLDOWN, PARAMETERS };

static void steps(const double *restrict seen, long rows, double *restrict buf) {
  for (long t = 0; t < rows; t++) {
    /* a row's telemetry once per lane: gcc 12 does not vectorise a choice whose test is the same in all lanes */
    for (int l = 0; l < L; l++) { S(32) = seen[t]; S(33) = seen[rows + t]; S(34) = seen[2 * rows + t]; }
#pragma omp simd
    for (int l = 0; l < L; l++) {
      const double loss = S(32), grad = S(33), bad = S(34);
      /* sensor */
      double n = S(8), gf = S(9), gs = S(10), ratio;
      int ok = (0.0 <= grad) & (grad <= 1e12);
      double capped = MIN(grad, 20.0 * gs), norm = SEL(n < 20.0, grad, capped), inv = 1.0 / (n + 1.0);
      double fast = 1.0 / P(FAST), slow = 1.0 / P(SLOW);
      double gf1 = gf + MAX(inv, fast) * (norm - gf), gs1 = gs + MAX(inv, slow) * (norm - gs);
      double r = gf1 / gs1;
      ratio = SEL(ok & (gs1 > 0.0), r, NAN);
      S(8) = SEL(ok, n + 1.0, n); S(9) = SEL(ok, gf1, gf); S(10) = SEL(ok, gs1, gs);

      double seen_ = S(0), prev = S(1), level = S(2), trend = S(3), md = S(4), low = S(5), swing = S(6), osc = S(7);
      int in = (-1e12 <= loss) & (loss <= 1e12), first = seen_ == 0.0;
      double p0 = SEL(first, loss, prev), l0 = SEL(first, loss, level), w0 = SEL(first, loss, low);
      double floor_ = 1e-4 * fabs(l0) + 1e-9, sd0 = 0.886226925452758 * md, sd = MAX(sd0, floor_);
      double predicted = l0 + trend, residual = loss - predicted, limit = P(CLIP) * sd;
      double m = MIN(limit, residual), mm = MAX(-limit, m), clipped = SEL(seen_ >= 10.0, mm, residual);
      double g1 = 1.0 / (seen_ + 1.0), g2 = 2.0 / (P(LEVEL) + 1.0), gain = MAX(g1, g2);
      double level1 = predicted + gain * clipped, trend0 = trend + gain * clipped / P(TREND);
      double trend1 = SEL(seen_ >= 2.0, trend0, trend);
      double diff = fabs(loss - p0), most = limit / 0.886226925452758, d1 = MIN(diff, most);
      diff = SEL(seen_ >= 10.0, d1, diff);
      double h1 = 1.0 / seen_, h2 = 1.0 / P(NOISE), md0 = md + MAX(h1, h2) * (diff - md);
      double md1 = SEL(seen_ >= 1.0, md0, md), leak = w0 + (level1 - w0) / P(FORGET);
      double low1 = SEL(level1 < w0, level1, leak);
      double z = residual / sd;
      double up = SEL(swing < 0.0, 1.0, 0.0), down = SEL(swing > 0.0, 1.0, 0.0);
      double down1 = SEL(z < -2.5, down, 0.0), swung = SEL(z > 2.5, up, down1);
      double sw = SEL(z < -2.5, -1.0, swing), swing1 = SEL(z > 2.5, 1.0, sw);
      double osc1 = osc + (swung - osc) / 30.0, rise_ = (level1 - low1) / sd, tr = trend1 / sd;
      double zz = SEL(in, z, NAN), rise = SEL(in, rise_, NAN), tsig = SEL(in, tr, NAN), osig = SEL(in, osc1, NAN);
      S(0) = SEL(in, seen_ + 1.0, seen_); S(1) = SEL(in, loss, prev); S(2) = SEL(in, level1, level);
      S(3) = SEL(in, trend1, trend); S(4) = SEL(in, md1, md); S(5) = SEL(in, low1, low);
      S(6) = SEL(in, swing1, swing); S(7) = SEL(in, osc1, osc);

      /* analyzer */
      double steps_ = S(11), now = S(12), dwell = S(13), hot = S(14), high = S(15);
      double count = MIN(steps_ + 1.0, P(WARMUP) + 1.0);
      hot = 0.8 * hot + SEL(zz > P(SPIKE), 1.0, 0.0);
      int unsafe = (now != 0.0) & (now != 1.0) & (now != 7.0);
      double lower = P(STRESS) * P(EXIT), lim = SEL(unsafe, lower, P(STRESS));
      int is_high = rise > lim;
      double hi1 = MIN(high + 1.0, 10.0 * P(DIVERGE_STEPS)), hi0 = MAX(0.0, high - 2.0);
      high = SEL(is_high, hi1, hi0);
      double reg = SEL(is_high, 2.0, 1.0);
      reg = SEL(osig > P(SHARE), 4.0, reg);
      double dp = SEL(tsig > 0.0, 5.0, 6.0);
      reg = SEL((high >= P(DIVERGE_STEPS)) & (rise > P(DIVERGE)), dp, reg);
      reg = SEL(ratio > P(GRAD), 5.0, reg);
      reg = SEL(hot > 1.5, 3.0, reg);
      int warm = count <= P(WARMUP), broken = bad == 1.0;
      reg = SEL(warm, 0.0, reg); hot = SEL(warm & !broken, 0.0, hot); high = SEL(warm & !broken, 0.0, high);
      reg = SEL(broken, 8.0, reg);
      double stay = SEL((dwell < P(DWELL)) & (now != 8.0), now, 7.0);
      double rec = SEL((now == 7.0) & (dwell < P(RECOVER)), now, reg), quiet = SEL(unsafe, stay, rec);
      reg = SEL(reg == 1.0, quiet, reg);
      double longer = MIN(dwell + 1.0, 1000000.0);
      S(11) = count; S(12) = reg; S(13) = SEL(reg == now, longer, 1.0); S(14) = hot; S(15) = high;

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
      S(22) = MAX(0.0, credit - effort); S(23) = row_; S(24) = sc;

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
