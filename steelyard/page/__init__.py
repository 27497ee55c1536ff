"""The status as one self-contained HTML page: no script, no font, no request off the machine; light and dark, on a phone and on paper."""

from steelyard.page.write import render as render
from steelyard.page.write import write_page as write_page
