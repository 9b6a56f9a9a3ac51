/* The router's arithmetic, compiled: ccr/columns.py, book.py, look.py, cost.py, features.py and policies/network.py for a
 * process that decides one request at a time, where numpy spends its time beginning and not computing.
 *
 * The Python is the definition. This file follows it operation by operation, in the same order and without contraction, so
 * that both give the same bits up to `log` and `exp` and the order of the network's sums (tests/ccr/native). It is built
 * where a C compiler is at hand; elsewhere the router runs the definition itself.
 *
 * Arrays come in through the buffer protocol, float64 in C order unless said otherwise: no header of numpy is needed.
 * Shapes: n nodes, M models, H = 32 hidden units. Row i of a table of rows is `table + i * n`.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WIDE
#endif

/* Rows, by the names and in the order they have in Python; `ROWS` tells them to the test that compares. */
#define LOAD_ROWS(X)                                                                                                   \
    X(PENDING) X(PENDING_PREFILL_S) X(KV_GIB) X(REMAINING_TOKENS) X(ACTIVE_MODELS) X(PASS_S) X(CONTEXT_S)              \
    X(WEIGHTS_GIB) X(BUDGET_GIB) X(SPEED) X(OVERHEAD_S) X(DONE_PER_S) X(BANDWIDTH) X(IN_BATCH)          \
    X(OTHERS) X(ANSWERS)
#define COST_ROWS(X)                                                                                                   \
    X(PREFILL_FIXED_S) X(PREFILL_FLOOR_S) X(PREFILL_TOKEN_S) X(PREFILL_SQUARE_S) X(DECODE_FIXED_S)                     \
    X(DECODE_SEQUENCE_S) X(DECODE_CONTEXT_S)
#define PAIR_ROWS(X)                                                                                                   \
    X(RESIDENT) X(SAME_MODEL) X(IS_LOADING) X(IN_HOST) X(LOAD_WAIT_S) X(EVICT_GIB) X(EVICT_COST_S) X(CACHED_TOKENS)    \
    X(SESSION_HERE) X(PREFILL_S) X(BACKLOG_S) X(STEP_BEFORE_S) X(STEP_AFTER_S) X(KV_OVERFLOW) X(KV_WAIT_S) X(BUSY)     \
    X(UNSEEN) X(SINCE_PROGRESS_S) X(CURVE_TTFT_S) X(PREDICTED_TTFT_S) X(PREDICTED_TOKEN_S) X(LOAD_S) X(TOKENS_LEFT)
#define ASKED_ROWS(X)                                                                                                  \
    X(PROMPT_TOKENS) X(OUTPUT_TOKENS) X(MODEL_GIB) X(SHARE) X(COPIES) X(FLEET_BUSY) X(COVERAGE) X(IDEAL_S)
#define TERM_ROWS(X) X(LOAD) X(BACKLOG) X(PREFILL) X(DECODE) X(KV) X(INFLICTED) X(EVICTED) X(COLD)
#define COLUMN_ROWS(X)                                                                                                 \
    X(INFLIGHT) X(QPS) X(LATENCY_S) X(GPU_FREE_GIB) X(GPU_TOTAL_GIB) X(ROOM_GIB) X(RUNNING) X(WAITING) X(KV_USED)      \
    X(TELEMETRY_AGE_S) X(RAMP)

#define SEEN_ROWS(X)                                                                                                   \
    X(QPS) X(DISPATCHED_S) X(LATENCY_S) X(LATENCY_AT_S) X(READ_S) X(FREE_GIB) X(RUNNING) X(WAITING) X(KV_USED)         \
    X(HEALTHY_SINCE_S)

#define LOAD_NAME(name) L_##name,
#define COST_NAME(name) C_##name,
#define PAIR_NAME(name) P_##name,
#define ASKED_NAME(name) A_##name,
#define TERM_NAME(name) T_##name,
#define COLUMN_NAME(name) F_##name,
#define SEEN_NAME(name) S_##name,
enum { LOAD_ROWS(LOAD_NAME) LOADS };
enum { COST_ROWS(COST_NAME) COSTS };
enum { PAIR_ROWS(PAIR_NAME) PAIRS };
enum { ASKED_ROWS(ASKED_NAME) ASKED };
enum { TERM_ROWS(TERM_NAME) TERMS };
enum { COLUMN_ROWS(COLUMN_NAME) COLUMNS };
enum { SEEN_ROWS(SEEN_NAME) SEEN };

enum { VICTIMS = 4, DERIVED = 9, HIDDEN = 32, EXTRA = 2, REQUEST_FEATURES = 8, MAX_FEATURES = 64 };
enum { FROM_PAIRS = TERMS, FROM_LOAD = FROM_PAIRS + PAIRS, FROM_COLUMNS = FROM_LOAD + LOADS,
       FROM_DERIVED = FROM_COLUMNS + COLUMNS, SOURCES = FROM_DERIVED + DERIVED };
enum { KAPPA, REJECT_COST, HOLD_SHARE, PRIORITY, SCALARS };

static const double OVERDUE = 0.1, DONE_WINDOW_S = 10.0, SHARE_MEMORY = 300.0, LENGTH_MEMORY = 50.0,
                    SPEED_WEIGHT = 0.05, SPEED_PRIOR = 5.0, LOAD_WEIGHT = 0.25, SHORTEST_LOAD_S = 0.02,
                    LONGEST_LOAD_S = 1800.0, MISS_S = 8.0, LEAST_S = 1e-3, SLO_FACTOR = 2.5, SLO_SLACK_S = 2.0, UNKNOWN = 1e6;

static inline double larger(double a, double b) { return a > b ? a : b; }
static inline double smaller(double a, double b) { return a < b ? a : b; }

/* -- arrays ------------------------------------------------------------------------------------------------------- */

static int buffer(PyObject *object, Py_buffer *view, char kind, Py_ssize_t items, bool is_written, const char *what)
{
    if (PyObject_GetBuffer(object, view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | (is_written ? PyBUF_WRITABLE : 0)) < 0)
        return -1;
    const char *format = view->format ? view->format : "B";
    bool is_kind = kind == 'q' ? (format[0] == 'q' || format[0] == 'l') && view->itemsize == 8 : format[0] == kind;
    if (!is_kind || format[1] != '\0' || (items >= 0 && view->len / view->itemsize != items)) {
        PyErr_Format(PyExc_ValueError, "%s: expected %zd items of type %c, found %zd of type %s", what, items, kind,
                     view->len / view->itemsize, format);
        PyBuffer_Release(view);
        return -1;
    }
    return 0;
}

static void release(Py_buffer *views, int count)
{
    for (int k = 0; k < count; k++)
        PyBuffer_Release(&views[k]);
}

static int has_arguments(Py_ssize_t given, Py_ssize_t wanted, const char *what)
{
    if (given == wanted)
        return 1;
    PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, %zd were given", what, wanted, given);
    return 0;
}

/* Arrays are taken once; what was made without them can do nothing. */
static int is_new(int held)
{
    if (!held)
        return 1;
    PyErr_SetString(PyExc_RuntimeError, "the arrays are held already: make another one");
    return 0;
}

static int is_made(int held, int wanted)
{
    if (held == wanted)
        return 1;
    PyErr_SetString(PyExc_RuntimeError, "it was made without its arrays");
    return 0;
}

/* Numbers out of arguments; the caller looks at PyErr_Occurred once for all of them. */
static double number(PyObject *object) { return PyFloat_AsDouble(object); }

/* -- the fleet's columns ------------------------------------------------------------------------------------------ */

/* ccr.columns.refresh: seen, stale after, window of the rate, memory of the latency, slow start, now, columns */
static PyObject *refresh_columns(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    (void)module;
    if (!has_arguments(count, 7, "refresh"))
        return NULL;
    double stale_after_s = number(given[1]), qps_window_s = number(given[2]), latency_memory_s = number(given[3]),
           slow_start_s = number(given[4]), now_s = number(given[5]);
    Py_buffer views[2];
    if (PyErr_Occurred() || buffer(given[0], &views[0], 'd', -1, false, "seen") < 0)
        return NULL;
    Py_ssize_t n = views[0].len / (Py_ssize_t)sizeof(double) / SEEN;
    if (buffer(given[6], &views[1], 'd', COLUMNS * n, true, "columns") < 0) {
        release(views, 1);
        return NULL;
    }
    const double *seen = views[0].buf;
    double *columns = views[1].buf, latency_sum = 0.0, free_sum = 0.0;
    Py_ssize_t answered = 0, told = 0;
#define SEEN_AT(name) seen[S_##name * n + i]
#define COLUMN_AT(name) columns[F_##name * n + i]
#define IS_FRESH (now_s - SEEN_AT(READ_S) <= stale_after_s)
    for (Py_ssize_t i = 0; i < n; i++) {
        if (SEEN_AT(LATENCY_S) > 0.0) {
            latency_sum += SEEN_AT(LATENCY_S);
            answered++;
        }
        if (IS_FRESH && !isnan(SEEN_AT(FREE_GIB))) {
            free_sum += SEEN_AT(FREE_GIB);
            told++;
        }
    }
    double mean_s = answered ? latency_sum / (double)answered : 0.0, free_gib = told ? free_sum / (double)told : 0.0;
    for (Py_ssize_t i = 0; i < n; i++) {
        bool is_fresh = IS_FRESH;
        double latency_s = SEEN_AT(LATENCY_S);
        COLUMN_AT(QPS) = SEEN_AT(QPS) * exp(-larger(now_s - SEEN_AT(DISPATCHED_S), 0.0) / qps_window_s);
        COLUMN_AT(LATENCY_S) = latency_s > 0.0 ? mean_s + (latency_s - mean_s) * exp(-larger(now_s - SEEN_AT(LATENCY_AT_S), 0.0) / latency_memory_s) : 0.0;
        COLUMN_AT(GPU_FREE_GIB) = is_fresh && !isnan(SEEN_AT(FREE_GIB)) ? SEEN_AT(FREE_GIB) : free_gib;
        COLUMN_AT(RUNNING) = is_fresh ? SEEN_AT(RUNNING) : 0.0;
        COLUMN_AT(WAITING) = is_fresh ? SEEN_AT(WAITING) : 0.0;
        COLUMN_AT(KV_USED) = is_fresh ? SEEN_AT(KV_USED) : 0.0;
        COLUMN_AT(TELEMETRY_AGE_S) = smaller(now_s - SEEN_AT(READ_S), UNKNOWN);
        double ramp = slow_start_s > 0.0 ? (now_s - SEEN_AT(HEALTHY_SINCE_S)) / slow_start_s : 1.0;
        COLUMN_AT(RAMP) = smaller(larger(ramp, 0.1), 1.0);
    }
#undef COLUMN_AT
    release(views, 2);
    return PyFloat_FromDouble(mean_s);
}

/* -- the book ----------------------------------------------------------------------------------------------------- */

/* Fields of ccr.book.Book, in its order: name, type, and items as a function of n and M. */
#define BOOK_FIELDS(X)                                                                                                 \
    X(load, double, 'd', LOADS * n) X(resident, char, '?', M * n) X(in_host, char, '?', M * n)                         \
    X(inflight, long long, 'q', M * n) X(loading_until_s, double, 'd', M * n) X(used_s, double, 'd', M * n)            \
    X(loads_until_s, double, 'd', n) X(progress_s, double, 'd', n) X(done_s, double, 'd', n)                           \
    X(victim_gib, double, 'd', (VICTIMS + 1) * n) X(victim_cost_s, double, 'd', (VICTIMS + 1) * n)                     \
    X(stale, char, '?', n) X(weights_gib, double, 'd', M) X(kv_gib, double, 'd', M) X(share, double, 'd', M)           \
    X(output_tokens, double, 'd', M) X(costs, double, 'd', COSTS * M * n) X(load_s, double, 'd', M * n)                \
    X(host_load_s, double, 'd', M * n)

#define COUNTED(name, type, kind, items) +1
enum { KEPT_FIELDS = 0 BOOK_FIELDS(COUNTED), ALL_FIELDS = KEPT_FIELDS + 4 };

typedef struct {
    PyObject_HEAD
    Py_ssize_t n, M;
    Py_buffer views[KEPT_FIELDS];
    int held;
#define DECLARED(name, type, kind, items) type *name;
    BOOK_FIELDS(DECLARED)
} Book;

static int book_init(Book *self, PyObject *arguments, PyObject *named)
{
    if (!is_new(self->held) || !has_arguments(PyTuple_GET_SIZE(arguments), ALL_FIELDS, "Book"))
        return -1;
    (void)named;
    Py_ssize_t n = PyObject_Length(PyTuple_GET_ITEM(arguments, 6)), M = PyObject_Length(PyTuple_GET_ITEM(arguments, 12));
    if (n < 0 || M < 0)
        return -1;
    self->n = n;
    self->M = M;
#define TAKEN(name, type, kind, items)                                                                                 \
    if (buffer(PyTuple_GET_ITEM(arguments, self->held), &self->views[self->held], kind, items, true, #name) < 0)       \
        return -1;                                                                                                     \
    self->name = self->views[self->held++].buf;
    BOOK_FIELDS(TAKEN)
    return 0;
}

static void book_dealloc(Book *self)
{
    release(self->views, self->held);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static inline double *row(const Book *b, int which) { return b->load + which * b->n; }
static inline double price(const Book *b, int which, Py_ssize_t m, Py_ssize_t i)
{
    return b->costs[(which * b->M + m) * b->n + i];
}

/* ccr.book.refresh */
static void refresh(Book *b, Py_ssize_t i)
{
    Py_ssize_t n = b->n, order[VICTIMS];
    int copies = 0;
    double weights = 0.0;
    for (Py_ssize_t m = 0; m < b->M; m++) {
        bool busy = b->inflight[m * n + i] > 0, here = b->resident[m * n + i];
        if (here || busy)
            weights += b->weights_gib[m];
        if (!here || busy)
            continue;
        int at = copies;
        while (at > 0 && b->used_s[order[at - 1] * n + i] > b->used_s[m * n + i]) {
            if (at < VICTIMS)
                order[at] = order[at - 1];
            at--;
        }
        if (at < VICTIMS) {
            order[at] = m;
            if (copies < VICTIMS)
                copies++;
        }
    }
    int gone = 0;
    while (gone < copies && weights > row(b, L_BUDGET_GIB)[i])
        weights -= b->weights_gib[order[gone++]];
    row(b, L_WEIGHTS_GIB)[i] = weights;
    double gib = 0.0, cost_s = 0.0;
    for (int k = 0; k <= VICTIMS; k++, gone++) {
        b->victim_gib[k * n + i] = gib;
        b->victim_cost_s[k * n + i] = cost_s;
        if (gone < copies) {
            gib += b->weights_gib[order[gone]];
            cost_s += b->share[order[gone]] * b->load_s[order[gone] * n + i];
        }
    }
    b->stale[i] = 0;
}

/* ccr.book.round_s */
static double round_s(const Book *b, Py_ssize_t i)
{
    return row(b, L_PASS_S)[i] + price(b, C_DECODE_SEQUENCE_S, 0, i) * row(b, L_IN_BATCH)[i] + row(b, L_CONTEXT_S)[i];
}

/* ccr.book.prefill_alone_s */
static double prefill_alone_s(const Book *b, Py_ssize_t m, Py_ssize_t i, double tokens, double cached)
{
    double arithmetic = price(b, C_PREFILL_TOKEN_S, m, i) * (tokens - cached) +
                        price(b, C_PREFILL_SQUARE_S, m, i) * (tokens * tokens - cached * cached);
    return price(b, C_PREFILL_FIXED_S, m, i) + larger(arithmetic, price(b, C_PREFILL_FLOOR_S, m, i));
}

static int is_inside(const Book *b, Py_ssize_t m, Py_ssize_t i)
{
    if (m >= 0 && m < b->M && i >= 0 && i < b->n)
        return 1;
    if (!PyErr_Occurred())
        PyErr_Format(PyExc_IndexError, "model %zd on node %zd: the book has %zd models and %zd nodes", m, i, b->M, b->n);
    return 0;
}

/* ccr.book.asked_for */
static PyObject *book_asked_for(Book *b, PyObject *model)
{
    Py_ssize_t m = PyLong_AsSsize_t(model);
    if (PyErr_Occurred() || !is_inside(b, m, 0))
        return NULL;
    double kept = 1.0 - 1.0 / SHARE_MEMORY;
    for (Py_ssize_t k = 0; k < b->M; k++)
        b->share[k] = b->share[k] * kept;
    b->share[m] += 1.0 / SHARE_MEMORY;
    Py_RETURN_NONE;
}

/* ccr.book.place: model, node, prompt, output, cached tokens, unseen, now -> the fields of a Placed */
static PyObject *book_place(Book *b, PyObject *const *given, Py_ssize_t count)
{
    if (!has_arguments(count, 7, "place"))
        return NULL;
    Py_ssize_t m = PyLong_AsSsize_t(given[0]), i = PyLong_AsSsize_t(given[1]), n = b->n;
    double prompt = number(given[2]), output = number(given[3]), cached = number(given[4]), unseen = number(given[5]),
           now_s = number(given[6]);
    if (PyErr_Occurred() || !is_inside(b, m, i))
        return NULL;
    Py_ssize_t at = m * n + i;
    bool was_cold = !b->resident[at];
    double prefill_s = prefill_alone_s(b, m, i, prompt, was_cold ? 0.0 : cached), begun_s = 0.0, wait_s = 0.0;
    double before = row(b, L_IN_BATCH)[i];
    if (b->inflight[at] == 0) {
        row(b, L_ACTIVE_MODELS)[i] += 1.0;
        row(b, L_PASS_S)[i] += price(b, C_DECODE_FIXED_S, m, i);
        b->stale[i] = 1;
        if (was_cold && !(b->loading_until_s[at] > now_s)) {
            double seconds = b->in_host[at] ? b->host_load_s[at] : b->load_s[at];
            wait_s = larger(b->loads_until_s[i] - now_s, 0.0);
            b->loading_until_s[at] = b->loads_until_s[i] = now_s + wait_s + seconds;
            if (!b->in_host[at])
                begun_s = seconds;
        }
    }
    if (before == 0.0)
        b->progress_s[i] = now_s;
    double held = prompt + 0.5 * output;
    b->inflight[at] += 1;
    b->used_s[at] = now_s;
    row(b, L_IN_BATCH)[i] += 1.0;
    row(b, L_PENDING)[i] += 1.0;
    row(b, L_PENDING_PREFILL_S)[i] += prefill_s;
    row(b, L_KV_GIB)[i] += b->kv_gib[m] * held;
    row(b, L_REMAINING_TOKENS)[i] += output;
    row(b, L_CONTEXT_S)[i] += price(b, C_DECODE_CONTEXT_S, m, i) * held;
    return Py_BuildValue("(nnddddddOddd)", m, i, prompt, output, prefill_s, round_s(b, i), before, unseen,
                         was_cold ? Py_True : Py_False, now_s, begun_s, wait_s);
}

typedef struct {
    Py_ssize_t m, i;
    double prompt, output, prefill_s, step_s, at_s, load_s, wait_s;
} Placed;

static int placed_of(const Book *b, PyObject *tuple, Placed *placed)
{
    if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != 12) {
        PyErr_SetString(PyExc_TypeError, "expected a Placed");
        return 0;
    }
    placed->m = PyLong_AsSsize_t(PyTuple_GET_ITEM(tuple, 0));
    placed->i = PyLong_AsSsize_t(PyTuple_GET_ITEM(tuple, 1));
    placed->prompt = number(PyTuple_GET_ITEM(tuple, 2));
    placed->output = number(PyTuple_GET_ITEM(tuple, 3));
    placed->prefill_s = number(PyTuple_GET_ITEM(tuple, 4));
    placed->step_s = number(PyTuple_GET_ITEM(tuple, 5));
    placed->at_s = number(PyTuple_GET_ITEM(tuple, 9));
    placed->load_s = number(PyTuple_GET_ITEM(tuple, 10));
    placed->wait_s = number(PyTuple_GET_ITEM(tuple, 11));
    return !PyErr_Occurred() && is_inside(b, placed->m, placed->i);
}

/* ccr.book._learn_load */
static void learn_load(Book *b, const Placed *p, double now_s)
{
    double seen_s = now_s - p->at_s - p->wait_s - row(b, L_SPEED)[p->i] * p->prefill_s;
    double factor = pow(smaller(larger(seen_s / p->load_s, 0.2), 5.0), LOAD_WEIGHT);
    double *of_model = b->load_s + p->m * b->n, *of_node = b->load_s + p->i;
    for (Py_ssize_t k = 0; k < b->n; k++)
        of_model[k] = smaller(larger(of_model[k] * factor, SHORTEST_LOAD_S), LONGEST_LOAD_S);
    for (Py_ssize_t k = 0; k < b->M; k++)
        of_node[k * b->n] = smaller(larger(of_node[k * b->n] * factor, SHORTEST_LOAD_S), LONGEST_LOAD_S);
}

/* ccr.book.first_token: placed, now */
static PyObject *book_first_token(Book *b, PyObject *const *given, Py_ssize_t count)
{
    Placed p;
    if (!has_arguments(count, 2, "first_token") || !placed_of(b, given[0], &p))
        return NULL;
    double now_s = number(given[1]);
    if (PyErr_Occurred())
        return NULL;
    Py_ssize_t at = p.m * b->n + p.i;
    row(b, L_PENDING)[p.i] -= 1.0;
    row(b, L_PENDING_PREFILL_S)[p.i] -= p.prefill_s;
    row(b, L_REMAINING_TOKENS)[p.i] -= 0.5 * p.output;
    b->progress_s[p.i] = now_s;
    if (!b->resident[at]) {
        b->resident[at] = 1;
        b->stale[p.i] = 1;
    }
    b->loading_until_s[at] = -INFINITY;
    if (row(b, L_PENDING)[p.i] < 0.5)
        row(b, L_PENDING_PREFILL_S)[p.i] = 0.0;
    if (p.load_s > 0.0)
        learn_load(b, &p, now_s);
    Py_RETURN_NONE;
}

/* ccr.book.leave: placed, whether it has its first token, now */
static PyObject *book_leave(Book *b, PyObject *const *given, Py_ssize_t count)
{
    Placed p;
    if (!has_arguments(count, 3, "leave") || !placed_of(b, given[0], &p))
        return NULL;
    int has_first_token = PyObject_IsTrue(given[1]);
    double now_s = number(given[2]);
    if (PyErr_Occurred())
        return NULL;
    Py_ssize_t i = p.i, at = p.m * b->n + i;
    if (!has_first_token) {
        row(b, L_PENDING)[i] -= 1.0;
        row(b, L_PENDING_PREFILL_S)[i] -= p.prefill_s;
        row(b, L_REMAINING_TOKENS)[i] -= 0.5 * p.output;
    }
    double held = p.prompt + 0.5 * p.output;
    row(b, L_IN_BATCH)[i] -= 1.0;
    row(b, L_KV_GIB)[i] -= b->kv_gib[p.m] * held;
    row(b, L_REMAINING_TOKENS)[i] -= 0.5 * p.output;
    row(b, L_CONTEXT_S)[i] -= price(b, C_DECODE_CONTEXT_S, p.m, i) * held;
    b->inflight[at] -= 1;
    if (b->inflight[at] == 0) {
        row(b, L_ACTIVE_MODELS)[i] -= 1.0;
        row(b, L_PASS_S)[i] -= price(b, C_DECODE_FIXED_S, p.m, i);
        b->loading_until_s[at] = -INFINITY;
        b->stale[i] = 1;
    }
    if (row(b, L_IN_BATCH)[i] < 0.5) {
        static const int emptied[] = {L_PENDING, L_PENDING_PREFILL_S, L_KV_GIB, L_REMAINING_TOKENS, L_ACTIVE_MODELS,
                                      L_PASS_S, L_CONTEXT_S};
        for (size_t k = 0; k < sizeof emptied / sizeof *emptied; k++)
            row(b, emptied[k])[i] = 0.0;
    }
    b->progress_s[i] = larger(b->progress_s[i], now_s);
    Py_RETURN_NONE;
}

/* ccr.book.learn without what only policies on observed latencies read: placed, ttft, total, output tokens, now */
static PyObject *book_learn(Book *b, PyObject *const *given, Py_ssize_t count)
{
    Placed p;
    if (!has_arguments(count, 5, "learn") || !placed_of(b, given[0], &p))
        return NULL;
    double ttft_s = number(given[1]), total_s = number(given[2]), output = number(given[3]), now_s = number(given[4]);
    if (PyErr_Occurred())
        return NULL;
    Py_ssize_t i = p.i;
    b->output_tokens[p.m] += (output - b->output_tokens[p.m]) / LENGTH_MEMORY;
    double kept = exp(-larger(now_s - b->done_s[i], 0.0) / DONE_WINDOW_S);
    row(b, L_DONE_PER_S)[i] = row(b, L_DONE_PER_S)[i] * kept + 1.0 / DONE_WINDOW_S;
    b->done_s[i] = now_s;
    if (output > 1.0 && total_s > ttft_s) {
        double held = p.prompt + 0.5 * p.output, token_s = (total_s - ttft_s) / (output - 1.0);
        double with_it = round_s(b, i) + price(b, C_DECODE_SEQUENCE_S, p.m, i);
        with_it += price(b, C_DECODE_CONTEXT_S, p.m, i) * held;
        if (b->inflight[p.m * b->n + i] == 0)
            with_it += price(b, C_DECODE_FIXED_S, p.m, i);
        double expected_s = larger(0.5 * (p.step_s + with_it), 1e-6);
        double speed = row(b, L_SPEED)[i];
        double ratio = larger(larger(token_s / expected_s, 0.5 * speed), 0.2);
        ratio = smaller(smaller(ratio, 2.0 * speed), 5.0);
        double weight = larger(1.0 / (row(b, L_ANSWERS)[i] + SPEED_PRIOR), SPEED_WEIGHT);
        row(b, L_SPEED)[i] = speed + weight * (ratio - speed);
        row(b, L_ANSWERS)[i] = smaller(row(b, L_ANSWERS)[i] + 1.0, 1.0 / SPEED_WEIGHT);
    }
    Py_RETURN_NONE;
}

/* -- the look ----------------------------------------------------------------------------------------------------- */

typedef struct {
    Py_ssize_t model, session_node;
    double prompt, output, session_tokens, coverage, now_s;
} Asking;

/* ccr.look.look_at, node by node; `load`, `pairs` and `asked` are written. */
WIDE static void look_at(Book *b, const Asking *q, const double *columns, double *load, double *pairs, double *asked)
{
    Py_ssize_t n = b->n, m = q->model;
    double prompt = q->prompt, output = q->output, now_s = q->now_s;
    double held = prompt + 0.5 * output, busy_sum = 0.0, resident_sum = 0.0, ideal_s = INFINITY;
    for (Py_ssize_t i = 0; i < n; i++)
        if (b->stale[i])
            refresh(b, i);
    memcpy(load, b->load, sizeof(double) * LOADS * n);
    memset(pairs, 0, sizeof(double) * PAIRS * n);
#define LOAD_AT(name) load[L_##name * n + i]
#define PAIR_AT(name) pairs[P_##name * n + i]
    for (Py_ssize_t i = 0; i < n; i++) {
        Py_ssize_t at = m * n + i;
        LOAD_AT(DONE_PER_S) = LOAD_AT(DONE_PER_S) * exp(-larger(now_s - b->done_s[i], 0.0) / DONE_WINDOW_S);

        /* Where the weights are, and how long until they are on the GPU. */
        bool resident = b->resident[at];
        double under_way_s = b->loading_until_s[at] - now_s, here = (double)b->inflight[at];
        bool loading = !resident && (under_way_s > 0.0 || here > 0.0);
        double load_s = b->in_host[at] ? b->host_load_s[at] : b->load_s[at];
        double queue_s = larger(b->loads_until_s[i] - now_s, 0.0);
        double wait_s = resident ? 0.0 : loading ? larger(under_way_s, OVERDUE * load_s) : queue_s + load_s;
        PAIR_AT(RESIDENT) = resident;
        PAIR_AT(SAME_MODEL) = here;
        PAIR_AT(IS_LOADING) = loading;
        PAIR_AT(IN_HOST) = b->in_host[at];
        PAIR_AT(LOAD_WAIT_S) = wait_s;
        PAIR_AT(LOAD_S) = resident ? 0.0 : load_s;

        /* Who would have to go. */
        bool absent = !(resident || loading);
        double free_gib = LOAD_AT(BUDGET_GIB) - LOAD_AT(WEIGHTS_GIB) - LOAD_AT(KV_GIB);
        double need_gib = b->weights_gib[m] + b->kv_gib[m] * (prompt + output);
        double short_gib = absent ? larger(need_gib - free_gib, 0.0) : 0.0, evicted_s = 0.0;
        for (int k = 0; k < VICTIMS; k++)
            if (short_gib > b->victim_gib[k * n + i] + 1e-9)
                evicted_s = b->victim_cost_s[(k + 1) * n + i];
        PAIR_AT(EVICT_GIB) = short_gib;
        PAIR_AT(EVICT_COST_S) = evicted_s;

        /* Work before it, and its own. */
        double in_batch = LOAD_AT(IN_BATCH), waiting = columns[F_WAITING * n + i];
        double unseen = smaller(LOAD_AT(OTHERS), columns[F_RUNNING * n + i] + waiting), busy = in_batch + unseen;
        double cached = 0.0;
        PAIR_AT(BUSY) = busy;
        PAIR_AT(UNSEEN) = unseen;
        if (i == q->session_node) {
            PAIR_AT(SESSION_HERE) = 1.0;
            if (resident)
                cached = smaller(q->session_tokens, larger(prompt - 1.0, 0.0));
            PAIR_AT(CACHED_TOKENS) = cached;
        }
        double prefill_s = prefill_alone_s(b, m, i, prompt, cached);
        PAIR_AT(PREFILL_S) = prefill_s;
        double others_waiting = smaller(unseen, larger(waiting - LOAD_AT(PENDING), 0.0));
        PAIR_AT(BACKLOG_S) = LOAD_AT(PENDING_PREFILL_S) + others_waiting * prefill_s;
        double context_s = price(b, C_DECODE_CONTEXT_S, m, i) * held, sequence_s = price(b, C_DECODE_SEQUENCE_S, m, i);
        double fixed_s = price(b, C_DECODE_FIXED_S, m, i);
        double mean_context_s = in_batch > 0.0 ? LOAD_AT(CONTEXT_S) / larger(in_batch, 1.0) : context_s;
        bool others_only = in_batch < 0.5 && unseen > 0.5;
        double pass_s = others_only ? fixed_s : LOAD_AT(PASS_S);
        double before_s = pass_s + sequence_s * busy + LOAD_AT(CONTEXT_S) + mean_context_s * unseen;
        double more_s = others_only || here > 0.0 ? 0.0 : fixed_s;
        double after_s = before_s + more_s + sequence_s + context_s;
        PAIR_AT(STEP_BEFORE_S) = before_s;
        PAIR_AT(STEP_AFTER_S) = after_s;

        /* Room for keys and values. */
        double joining_gib = absent ? b->weights_gib[m] : 0.0;
        double room_gib = larger(LOAD_AT(BUDGET_GIB) - LOAD_AT(WEIGHTS_GIB) - joining_gib + short_gib, 0.25);
        double scale = in_batch > 0.5 ? busy / larger(in_batch, 1.0) : 1.0, like_this = in_batch > 0.5 ? 0.0 : unseen;
        double wanted_gib = LOAD_AT(KV_GIB) * scale + b->kv_gib[m] * held * like_this + b->kv_gib[m] * (prompt + output);
        double overflow = larger(wanted_gib / room_gib - 1.0, 0.0);
        double tokens_left = LOAD_AT(REMAINING_TOKENS) * scale + 0.5 * output * like_this;
        PAIR_AT(TOKENS_LEFT) = tokens_left;
        PAIR_AT(KV_OVERFLOW) = overflow;
        PAIR_AT(KV_WAIT_S) = smaller(overflow, 4.0) * larger(tokens_left / larger(busy, 1.0), 1.0) * after_s;
        PAIR_AT(SINCE_PROGRESS_S) = in_batch > 0.0 ? larger(now_s - b->progress_s[i], 0.0) : 0.0;

        busy_sum += busy;
        resident_sum += resident;
        ideal_s = smaller(ideal_s, prefill_s + output * (fixed_s + sequence_s + context_s));
    }
    double found[ASKED] = {prompt, output, b->weights_gib[m], b->share[m], resident_sum / (double)n,
                           busy_sum / (double)n, q->coverage, ideal_s};
    memcpy(asked, found, sizeof found);
}

/* columns, model, prompt, output, session node, session tokens, coverage, now, out: load, pairs, asked one after another */
static PyObject *book_look(Book *b, PyObject *const *given, Py_ssize_t count)
{
    if (!is_made(b->held, KEPT_FIELDS) || !has_arguments(count, 9, "look"))
        return NULL;
    Asking q = {PyLong_AsSsize_t(given[1]), PyLong_AsSsize_t(given[4]), number(given[2]), number(given[3]),
                number(given[5]), number(given[6]), number(given[7])};
    if (PyErr_Occurred() || !is_inside(b, q.model, 0))
        return NULL;
    Py_buffer views[2];
    if (buffer(given[0], &views[0], 'd', COLUMNS * b->n, false, "columns") < 0)
        return NULL;
    if (buffer(given[8], &views[1], 'd', (LOADS + PAIRS) * b->n + ASKED, true, "out") < 0) {
        release(views, 1);
        return NULL;
    }
    double *load = views[1].buf, *pairs = load + LOADS * b->n;
    look_at(b, &q, views[0].buf, load, pairs, pairs + PAIRS * b->n);
    release(views, 2);
    Py_RETURN_NONE;
}

static PyMethodDef BOOK_METHODS[] = {
    {"asked_for", (PyCFunction)book_asked_for, METH_O, "As ccr.book.asked_for."},
    {"place", (PyCFunction)(void (*)(void))book_place, METH_FASTCALL, "As ccr.book.place; the fields of a Placed."},
    {"first_token", (PyCFunction)(void (*)(void))book_first_token, METH_FASTCALL, "As ccr.book.first_token."},
    {"leave", (PyCFunction)(void (*)(void))book_leave, METH_FASTCALL, "As ccr.book.leave."},
    {"learn", (PyCFunction)(void (*)(void))book_learn, METH_FASTCALL, "As ccr.book.learn, nothing observed."},
    {"look", (PyCFunction)(void (*)(void))book_look, METH_FASTCALL, "As ccr.look.look_at, nothing observed."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject BookType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "ccr.native.swift.Book",
    .tp_basicsize = sizeof(Book),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "The arrays of a ccr.book.Book, held for as long as this lives.",
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)book_init,
    .tp_dealloc = (destructor)book_dealloc,
    .tp_methods = BOOK_METHODS,
};

/* -- cost and network --------------------------------------------------------------------------------------------- */

/* ccr.cost.terms of one node */
static void terms_of(const double *load, const double *pairs, double output, Py_ssize_t n, Py_ssize_t i, double *out)
{
    double speed = LOAD_AT(SPEED), busy = PAIR_AT(BUSY);
    out[T_LOAD] = PAIR_AT(LOAD_WAIT_S);
    out[T_BACKLOG] = speed * PAIR_AT(BACKLOG_S);
    out[T_PREFILL] = speed * PAIR_AT(PREFILL_S) + LOAD_AT(OVERHEAD_S);
    out[T_DECODE] = speed * PAIR_AT(STEP_AFTER_S) * output;
    out[T_KV] = speed * PAIR_AT(KV_WAIT_S);
    double together = smaller(PAIR_AT(TOKENS_LEFT), busy * output);
    double longer_s = PAIR_AT(STEP_AFTER_S) - PAIR_AT(STEP_BEFORE_S);
    out[T_INFLICTED] = speed * (busy * PAIR_AT(PREFILL_S) + together * longer_s);
    out[T_EVICTED] = PAIR_AT(EVICT_COST_S);
    out[T_COLD] = 1.0 - PAIR_AT(RESIDENT);
}

/* ccr.cost.total of one node */
static double total_of(const double *terms, const double *theta)
{
    double sum = larger(theta[T_LOAD] * terms[T_LOAD], theta[T_BACKLOG] * terms[T_BACKLOG]);
    for (int k = T_PREFILL; k < TERMS; k++)
        sum += theta[k] * terms[k];
    return sum;
}

typedef struct {
    const double *load, *pairs, *columns, *asked;
    Py_ssize_t n;
    Py_buffer views[4];
} Look;

static int look_of(PyObject *tuple, Look *look)
{
    static const char *const names[] = {"columns", "load", "pairs", "asked"};
    if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != 4) {
        PyErr_SetString(PyExc_TypeError, "expected a Look");
        return 0;
    }
    Py_ssize_t rows[] = {COLUMNS, LOADS, PAIRS, 1}, items = -1;
    for (int k = 0; k < 4; k++) {
        items = k == 0 ? -1 : k == 3 ? ASKED : rows[k] * look->n;
        if (buffer(PyTuple_GET_ITEM(tuple, k), &look->views[k], 'd', items, false, names[k]) < 0) {
            release(look->views, k);
            return 0;
        }
        if (k == 0)
            look->n = look->views[0].len / (Py_ssize_t)sizeof(double) / COLUMNS;
    }
    look->columns = look->views[0].buf;
    look->load = look->views[1].buf;
    look->pairs = look->views[2].buf;
    look->asked = look->views[3].buf;
    return 1;
}

/* costs(look, theta, out): ccr.cost.total of ccr.cost.terms, shape (n,) */
static PyObject *costs(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    (void)module;
    Look look;
    if (!has_arguments(count, 3, "costs") || !look_of(given[0], &look))
        return NULL;
    Py_buffer views[2];
    PyObject *done = NULL;
    if (buffer(given[1], &views[0], 'd', TERMS, false, "theta") == 0) {
        if (buffer(given[2], &views[1], 'd', look.n, true, "out") == 0) {
            double terms[TERMS], *out = views[1].buf;
            for (Py_ssize_t i = 0; i < look.n; i++) {
                terms_of(look.load, look.pairs, look.asked[A_OUTPUT_TOKENS], look.n, i, terms);
                out[i] = total_of(terms, views[0].buf);
            }
            done = Py_NewRef(Py_None);
            release(&views[1], 1);
        }
        release(&views[0], 1);
    }
    release(look.views, 4);
    return done;
}

/* Fields of ccr.policies.network.Network in its order, then of the table of features: source row, gain, scale. */
#define NETWORK_FIELDS(X)                                                                                              \
    X(theta, 'd', TERMS) X(scalars, 'd', SCALARS) X(node, 'd', F * HIDDEN) X(request, 'd', REQUEST_FEATURES * HIDDEN)  \
    X(bias, 'd', HIDDEN) X(own, 'd', HIDDEN * HIDDEN) X(pool, 'd', HIDDEN * HIDDEN) X(second_bias, 'd', HIDDEN)        \
    X(out, 'd', HIDDEN) X(extra, 'd', HIDDEN * EXTRA) X(extra_bias, 'd', EXTRA) X(source, 'q', F) X(gain, 'd', F)      \
    X(scale, 'd', F)

#define COUNTED_TOO(name, kind, items) +1
enum { NETWORK_ARRAYS = 0 NETWORK_FIELDS(COUNTED_TOO) };

typedef struct {
    PyObject_HEAD
    Py_ssize_t F, logs, room;
    double *first; /* scratch: the first layer of every node, shape (room, H) */
    double *cost_s; /* scratch: the cost of every node, shape (room,) */
    Py_buffer views[NETWORK_ARRAYS];
    int held;
#define DECLARED_TOO(name, kind, items) const void *name;
    NETWORK_FIELDS(DECLARED_TOO)
} Network;

static int network_init(Network *self, PyObject *arguments, PyObject *named)
{
    if (!is_new(self->held) || !has_arguments(PyTuple_GET_SIZE(arguments), NETWORK_ARRAYS + 1, "Network"))
        return -1;
    (void)named;
    Py_ssize_t F = PyObject_Length(PyTuple_GET_ITEM(arguments, NETWORK_ARRAYS - 3));
    self->logs = PyLong_AsSsize_t(PyTuple_GET_ITEM(arguments, NETWORK_ARRAYS));
    if (PyErr_Occurred())
        return -1;
    if (F > MAX_FEATURES || self->logs < 0 || self->logs > F) {
        PyErr_Format(PyExc_ValueError, "%zd features, %zd of them logarithms: at most %d", F, self->logs, MAX_FEATURES);
        return -1;
    }
    self->F = F;
#define TAKEN_TOO(name, kind, items)                                                                                   \
    if (buffer(PyTuple_GET_ITEM(arguments, self->held), &self->views[self->held], kind, items, false, #name) < 0)      \
        return -1;                                                                                                     \
    self->name = self->views[self->held++].buf;
    NETWORK_FIELDS(TAKEN_TOO)
    for (Py_ssize_t f = 0; f < F; f++)
        if (((const long long *)self->source)[f] < 0 || ((const long long *)self->source)[f] >= SOURCES) {
            PyErr_Format(PyExc_ValueError, "feature %zd reads a row that does not exist", f);
            return -1;
        }
    return 0;
}

static void network_dealloc(Network *self)
{
    release(self->views, self->held);
    PyMem_Free(self->first);
    PyMem_Free(self->cost_s);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* ccr.features.node_features of one node, shape (F,); its cost terms come along. */
static void features_of(const Network *net, const Look *look, Py_ssize_t i, double *terms, double *x)
{
    Py_ssize_t n = look->n;
    const double *load = look->load, *pairs = look->pairs, *columns = look->columns;
    const long long *source = net->source;
    const double *gain = net->gain, *scale = net->scale;
    double rows[SOURCES], *derived = rows + FROM_DERIVED, budget_gib = larger(LOAD_AT(BUDGET_GIB), 1.0);
    terms_of(load, pairs, look->asked[A_OUTPUT_TOKENS], n, i, terms);
    memcpy(rows, terms, sizeof(double) * TERMS);
    for (int k = 0; k < PAIRS; k++)
        rows[FROM_PAIRS + k] = pairs[k * n + i];
    for (int k = 0; k < LOADS; k++)
        rows[FROM_LOAD + k] = load[k * n + i];
    for (int k = 0; k < COLUMNS; k++)
        rows[FROM_COLUMNS + k] = columns[k * n + i];
#define COLUMN_AT(name) columns[F_##name * n + i]
    derived[0] = PAIR_AT(EVICT_GIB) / budget_gib;
    derived[1] = PAIR_AT(CACHED_TOKENS) / larger(look->asked[A_PROMPT_TOKENS], 1.0);
    derived[2] = COLUMN_AT(GPU_FREE_GIB) / larger(COLUMN_AT(GPU_TOTAL_GIB), 1.0);
    derived[3] = (LOAD_AT(BUDGET_GIB) - LOAD_AT(WEIGHTS_GIB) - LOAD_AT(KV_GIB)) / budget_gib;
    derived[4] = smaller(PAIR_AT(KV_OVERFLOW), 4.0);
    derived[5] = PAIR_AT(TOKENS_LEFT) / larger(PAIR_AT(BUSY), 1.0);
    derived[6] = LOAD_AT(SPEED) - 1.0;
    derived[7] = larger(LOAD_AT(BANDWIDTH), 0.01) - 1.0;
    derived[8] = smaller(COLUMN_AT(TELEMETRY_AGE_S), 10.0);
    for (Py_ssize_t f = 0; f < net->F; f++) {
        double value = rows[source[f]] * gain[f];
        /* Of what is small the logarithm of 1 + x is off by 1e-16, and costs a third of log1p. */
        x[f] = (f < net->logs ? log(1.0 + value) : value) * scale[f];
    }
}

/* out = relu(start + x @ weights), shapes (H,), (k,), (k, H) */
static inline __attribute__((always_inline)) void layer(const double *x, Py_ssize_t k, const double *weights,
                                                        const double *start, double *out)
{
    double sum[HIDDEN];
    memcpy(sum, start, sizeof sum);
    for (Py_ssize_t f = 0; f < k; f++)
        for (int h = 0; h < HIDDEN; h++)
            sum[h] += x[f] * weights[f * HIDDEN + h];
    for (int h = 0; h < HIDDEN; h++)
        out[h] = larger(sum[h], 0.0);
}

/* ccr.policies.network.logits; `out` has n + 2 places, refusing and holding last. */
WIDE static void logits_of(const Network *net, const Look *look, const char *mask, double *out)
{
    Py_ssize_t n = look->n, may = 0;
    const double *asked = look->asked, *scalars = net->scalars, *own = net->own, *pool = net->pool;
    const double *request = net->request, *bias = net->bias, *second_bias = net->second_bias, *last = net->out;
    const double *extra = net->extra, *extra_bias = net->extra_bias;
    double kappa = scalars[KAPPA], promised_s = SLO_FACTOR * asked[A_IDEAL_S] + SLO_SLACK_S, best_s = INFINITY;
    const double r[REQUEST_FEATURES] = {
        log1p(asked[A_PROMPT_TOKENS]) / 8.0, log1p(asked[A_OUTPUT_TOKENS]) / 7.0, asked[A_MODEL_GIB] / 20.0,
        asked[A_SHARE], asked[A_COPIES], log1p(asked[A_FLEET_BUSY]) / 4.0, asked[A_COVERAGE], log1p(promised_s) / 3.0};
    double base[HIDDEN], pooled[HIDDEN] = {0.0}, beside[HIDDEN], second[HIDDEN], x[MAX_FEATURES], terms[TERMS];
    memcpy(base, bias, sizeof base);
    for (int q = 0; q < REQUEST_FEATURES; q++)
        for (int h = 0; h < HIDDEN; h++)
            base[h] += r[q] * request[q * HIDDEN + h];
    for (Py_ssize_t i = 0; i < n; i++) {
        features_of(net, look, i, terms, x);
        net->cost_s[i] = larger(total_of(terms, net->theta), LEAST_S);
        layer(x, net->F, net->node, base, net->first + i * HIDDEN);
        if (mask[i]) {
            may++;
            best_s = smaller(best_s, net->cost_s[i]);
            for (int h = 0; h < HIDDEN; h++)
                pooled[h] += net->first[i * HIDDEN + h];
        }
    }
    memcpy(beside, second_bias, sizeof beside);
    for (int g = 0; g < HIDDEN; g++) {
        pooled[g] /= (double)may;
        for (int h = 0; h < HIDDEN; h++)
            beside[h] += pooled[g] * pool[g * HIDDEN + h];
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        layer(net->first + i * HIDDEN, HIDDEN, own, beside, second);
        double added = 0.0;
        for (int h = 0; h < HIDDEN; h++)
            added += second[h] * last[h];
        out[i] = added - kappa * log(net->cost_s[i]);
    }
    const double price_s[EXTRA] = {larger(scalars[REJECT_COST] * (promised_s + MISS_S), LEAST_S),
                                   larger(scalars[HOLD_SHARE] * best_s, LEAST_S)};
    for (int k = 0; k < EXTRA; k++) {
        double added = extra_bias[k];
        for (int h = 0; h < HIDDEN; h++)
            added += pooled[h] * extra[h * EXTRA + k];
        out[n + k] = added - kappa * log(price_s[k]);
    }
}

static int has_room(Network *self, Py_ssize_t n)
{
    if (n <= self->room)
        return 1;
    double *first = PyMem_Realloc(self->first, sizeof(double) * HIDDEN * n);
    if (first)
        self->first = first;
    double *cost_s = first ? PyMem_Realloc(self->cost_s, sizeof(double) * n) : NULL;
    if (!cost_s) {
        PyErr_NoMemory();
        return 0;
    }
    self->cost_s = cost_s;
    self->room = n;
    return 1;
}

/* look, mask, out */
static PyObject *network_logits(Network *self, PyObject *const *given, Py_ssize_t count)
{
    Look look;
    if (!is_made(self->held, NETWORK_ARRAYS) || !has_arguments(count, 3, "logits") || !look_of(given[0], &look))
        return NULL;
    Py_buffer views[2];
    PyObject *done = NULL;
    if (has_room(self, look.n) && buffer(given[1], &views[0], '?', look.n, false, "mask") == 0) {
        if (buffer(given[2], &views[1], 'd', look.n + EXTRA, true, "out") == 0) {
            logits_of(self, &look, views[0].buf, views[1].buf);
            done = Py_NewRef(Py_None);
            release(&views[1], 1);
        }
        release(&views[0], 1);
    }
    release(look.views, 4);
    return done;
}

static PyMethodDef NETWORK_METHODS[] = {
    {"logits", (PyCFunction)(void (*)(void))network_logits, METH_FASTCALL, "As ccr.policies.network.logits, of a look."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject NetworkType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "ccr.native.swift.Network",
    .tp_basicsize = sizeof(Network),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "The arrays of a ccr.policies.network.Network and the table of features, held for as long as this lives.",
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)network_init,
    .tp_dealloc = (destructor)network_dealloc,
    .tp_methods = NETWORK_METHODS,
};

/* -- the module --------------------------------------------------------------------------------------------------- */

static PyMethodDef FUNCTIONS[] = {
    {"refresh", (PyCFunction)(void (*)(void))refresh_columns, METH_FASTCALL, "As ccr.columns.refresh."},
    {"costs", (PyCFunction)(void (*)(void))costs, METH_FASTCALL, "As ccr.cost.total of ccr.cost.terms."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "swift", "The router's arithmetic, compiled.", -1, FUNCTIONS,
                                    NULL, NULL, NULL, NULL};

#define TOLD(name) #name " "

PyMODINIT_FUNC PyInit_swift(void)
{
    if (PyType_Ready(&BookType) < 0 || PyType_Ready(&NetworkType) < 0)
        return NULL;
    PyObject *module = PyModule_Create(&MODULE);
    if (!module)
        return NULL;
    PyObject *rows = Py_BuildValue("{ssssssssssssss}", "load", LOAD_ROWS(TOLD), "costs", COST_ROWS(TOLD), "pairs",
                                   PAIR_ROWS(TOLD), "asked", ASKED_ROWS(TOLD), "terms", TERM_ROWS(TOLD), "columns",
                                   COLUMN_ROWS(TOLD), "seen", SEEN_ROWS(TOLD));
    if (!rows || PyModule_AddObject(module, "ROWS", rows) < 0 ||
        PyModule_AddObjectRef(module, "Book", (PyObject *)&BookType) < 0 ||
        PyModule_AddObjectRef(module, "Network", (PyObject *)&NetworkType) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
