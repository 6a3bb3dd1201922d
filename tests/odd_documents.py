"""Documents of which a careless reader loses the text, or reads what nobody sees."""

from __future__ import annotations

import io
import zipfile

LEFT = """The river rose quickly during the night and
the families who live beside the lower bridge
were moved to the school before the road was
closed. Volunteers carried blankets and food
from the store, and a nurse stayed with the
older people until the morning came. Nobody
was hurt, although two boats were lost when
the ropes that held them broke in the dark."""
RIGHT = """Clean water was brought by truck from the
town because the wells had been flooded, and
every household received twenty litres a day.
The health team tested each source before it
was opened again. Chlorine tablets were given
out with a short leaflet that explained how
to use them. After one week the number of
cases of diarrhoea had fallen to the level"""
COLUMNS = (LEFT, RIGHT)
PROSE = " ".join(LEFT.split()[1:])
HIDDEN = f"""<!doctype html><html><body><p>At noon {PROSE}</p><p hidden>SECRET one</p>
<div style="color: red; display:none">SECRET two</div><template><p>SECRET three</p></template>
<noscript>SECRET four</noscript><span aria-hidden="true">ORNAMENT</span><dialog>SECRET five</dialog>
<p>Later the water fell again after three days of wait. {" ".join(RIGHT.split())}</p></body></html>"""
AUTHORS_AND_DATA = {"authors": ["Ann Lee", "Bo Ray"], "data": [{"text": f"At noon {PROSE}"}]}


def archive_with_a_bomb() -> bytes:
    """Three documents, one of which unpacks to 30 MB and one would leave the archive."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as members:
        for name, content in (("bomb.txt", bytes(30_000_000)), ("../outside.txt", b"SECRET"), ("good.txt", PROSE)):
            members.writestr(name, content)
    return archive.getvalue()


def columns_pdf(left: str = LEFT, right: str = RIGHT, *, by_row: bool = True) -> bytes:
    """One page in two columns; `by_row`: each row is drawn from left to right, else one column after the other."""
    columns = [(60, left.split("\n")), (330, right.split("\n"))]
    drawn = [(x, 700 - 14 * at, line) for x, lines in columns for at, line in enumerate(lines)]
    if by_row:
        drawn.sort(key=lambda item: -item[1])
    stream = b"".join(b"BT /F1 10 Tf 1 0 0 1 %d %d Tm (%s) Tj ET\n" % (x, y, line.encode()) for x, y, line in drawn)
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [5 0 R] /Count 1 >>",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        b"/Resources << /Font << /F1 3 0 R >> >> >>",
    ]
    content, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % len(content)
    return content + b"xref\n0 6\n0000000000 65535 f \n" + table + end
