# How the results of hack/bench stand to what icbd-agent replicate is to reach: a line a goal of which both sides were
# measured.
include "medians";

# At least so many times as fast as another contender.
def speeds: [
    ["plain/full", "pipe:1", 1.2], ["plain/full", "pipe:2", 1], ["plain/full", "ssh:1", 1.8],
    ["plain/full", "ssh:2", 1.8], ["plain/full", "btrbk", 2.5], ["plain/full", "floor", 1 / 1.2],
    ["plain/64M", "pipe:1", 1], ["plain/64M", "pipe:2", 1],
    ["plain/64M", "ssh:1", 3], ["plain/64M", "ssh:2", 3], ["plain/64M", "btrbk", 10],
    ["zstd/full", "pipe:2", 1], ["zstd/full", "ssh:2", 1.5],
    ["zstd/64M", "pipe:2", 1], ["zstd/64M", "ssh:2", 1.5],
    # The default codec, Auto, costs at most a tenth over the better of these.
    ["plain/full", "icbd:none", 1 / 1.1], ["plain/full", "icbd:lz4", 1 / 1.1],
    ["zstd/full", "icbd:none", 1 / 1.1], ["zstd/full", "icbd:lz4", 1 / 1.1]
][];

# At most so many seconds slower.
def margins: [["plain/1M", "pipe:1", 0.05], ["plain/1M", "pipe:2", 0.05], ["zstd/1M", "pipe:2", 0.05]][];

# At most so many times the processor time.
def efforts: [["plain/full", "pipe:1", 1.2]][];

# MiB.
def memory_limit: 128;

def of($case; $contender): map(select(.case == $case and .contender == $contender))[];

def hundredths: . * 100 | round / 100;

def verdict($reached; $text): (if $reached then "reached  " else "MISSED   " end) + $text;

medians
| (speeds as [$case, $other, $wanted]
    | (of($case; $other).seconds / of($case; "icbd").seconds) as $times
    | verdict($times >= $wanted;
        "\($case): \($times | hundredths) times as fast as \($other), at least \($wanted | hundredths) wanted")),
  (margins as [$case, $other, $wanted]
    | (of($case; "icbd").seconds - of($case; $other).seconds) as $later
    | verdict($later <= $wanted;
        "\($case): \($later * 1000 | round) ms slower than \($other), at most \($wanted * 1000) wanted")),
  (efforts as [$case, $other, $wanted]
    | (of($case; "icbd").cpuSeconds / of($case; $other).cpuSeconds) as $times
    | verdict($times <= $wanted;
        "\($case): \($times | hundredths) times the processor time of \($other), at most \($wanted) wanted")),
  (map(.peakRssAnon // empty) | select(. != []) | max / pow(2; 20)
    | verdict(. < memory_limit; "all cases: RssAnon at most \(round) MiB, less than \(memory_limit) wanted"))
