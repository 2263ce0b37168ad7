"""Just enough SVG: text in, one self-contained file out."""
import html
import math

INK, SOFT, GRID, PAPER = "#1b1f24", "#5b6570", "#dfe3e8", "#ffffff"


class Canvas:
    def __init__(self, width, height):
        self.width, self.height = width, height
        self.parts = []

    def add(self, part):
        self.parts.append(part)

    def rect(self, x, y, width, height, fill, **more):
        self.add(f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.3):.1f}" height="{height:.1f}" fill="{fill}"{attributes(more)}/>')

    def line(self, x1, y1, x2, y2, stroke, width=1.0, **more):
        self.add(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}" stroke-width="{width}"{attributes(more)}/>')

    def text(self, x, y, words, size=12, fill=INK, anchor="start", **more):
        self.add(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"{attributes(more)}>'
                 f'{html.escape(str(words))}</text>')

    def dots(self, points, fill, radius=1.4, opacity=1.0):
        """Many dots as one path of zero-length strokes: a tenth of the size of as many circles."""
        if points:
            path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
            self.add(f'<path d="{path}" stroke="{fill}" stroke-width="{radius * 2}" stroke-linecap="round" '
                     f'fill="none" stroke-opacity="{opacity}"/>')

    def polyline(self, points, stroke, width=1.2):
        if points:
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            self.add(f'<path d="{path}" stroke="{stroke}" stroke-width="{width}" fill="none" stroke-linejoin="round"/>')

    def finish(self):
        return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
                f'viewBox="0 0 {self.width} {self.height}" font-family="sans-serif">\n'
                f'<rect width="100%" height="100%" fill="{PAPER}"/>\n' + "\n".join(self.parts) + "\n</svg>\n")


def attributes(more):
    return "".join(f' {key.replace("_", "-")}="{value}"' for key, value in more.items())


class Axis:
    """From values to positions, linear or logarithmic."""

    def __init__(self, low, high, at_low, at_high, log=False):
        self.low, self.high, self.at_low, self.at_high, self.log = low, high, at_low, at_high, log

    def __call__(self, value):
        value = min(max(value, self.low), self.high)
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.at_low + part * (self.at_high - self.at_low)

    def ticks(self, count=8):
        if self.log:
            exponent = math.ceil(math.log10(self.low) - 1e-9)
            values = []
            while 10.0 ** exponent <= self.high * 1.0001:
                values.append(10.0 ** exponent)
                exponent += 1
            return values
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [step * n for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def milliseconds(value):
    """A duration for people, from ms."""
    if value >= 1000:
        return f"{value / 1000:.3g} s"
    return f"{value:.3g} ms" if value >= 1 else f"{value * 1000:.3g} µs"
