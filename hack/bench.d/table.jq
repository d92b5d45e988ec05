# The results of hack/bench as a Markdown table a case.
include "medians";

# A decimal with so many digits, one or more, after its point.
def fixed($digits): if . == null then "" else
    (. * pow(10; $digits) | round | tostring) as $all
    | ("0" * ([$digits + 1 - ($all | length), 0] | max)) + $all
    | .[:length - $digits] + "." + .[length - $digits:] end;

def mib: if . == null then null else . / pow(2; 20) end;

def ratio($to): if $to == null then null else . / $to end;

# Of the contender of that name in a case.
def seconds_of($name): map(select(.contender == $name)) | .[0].seconds;

def row($widths): [., $widths] | transpose | map(.[0] + " " * (.[1] - (.[0] | length))) | "| " + join(" | ") + " |";

# Lists of text, the first of them the head.
def markdown:
    (transpose | map(map(length) | max)) as $widths
    | (.[0] | row($widths)), ($widths | map("-" * .) | row($widths)), (.[1:][] | row($widths));

def head: ["median s", "range s", "x floor", "x icbd", "CPU s", "CPU s/GiB", "wire MiB", "RssAnon MiB", "left s"];

def table:
    seconds_of("floor") as $floor | seconds_of("icbd") as $icbd
    | [[.[0].case] + head] + map([
        .contender, (.seconds | fixed(3)), "\(.fastest | fixed(3))-\(.slowest | fixed(3))",
        (.seconds | ratio($floor) | fixed(2)), (.seconds | ratio($icbd) | fixed(2)),
        (.cpuSeconds | fixed(2)), (.cpuSecondsPerGiB | fixed(2)), (.wireBytes | mib | fixed(1)),
        (.peakRssAnon | mib | fixed(1)), (.unsyncedSeconds | fixed(3))])
    | markdown;

def machine:
    "commit \(.commit); \(.processors) x \(.processor), \(.memoryBytes / pow(2; 30) | round) GiB; Linux \(.kernel); "
    + (.versions | join("; ")) + "; others used \(.usedByOthersPercent) % of the processors; "
    + "disk image of \(.diskBytes | mib | round) MiB, \(.contentBytes | mib | round) of them content";

(.[0] | machine),
(medians | . as $all | map(.case) | distinct[] | . as $case | $all | map(select(.case == $case)) | "", table)
