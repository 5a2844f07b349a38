"""The page as Chromium shows it: no complaint, no network, sorting, slider, keyboard, layouts, light and dark."""
import re

import cv2
import numpy as np
import pytest

from datasets.labels import CITYSCAPES, LabelSet
from tests.browser import browse, needs_browser
from tests.made_report import make

pytestmark = needs_browser
COUNT = 70  # more than the gallery makes at once
NASTY = '<b>"x"</b> & </script>'
LABELS = LabelSet((*CITYSCAPES.names[:10], NASTY, *CITYSCAPES.names[11:]), CITYSCAPES.palette,
                  categories=CITYSCAPES.categories)
NAMES = [*(f'city/{i:03d}' for i in range(COUNT - 2)), '</script><img src=x onerror=alert(1)>"\'',
         'straße/übung #1?%20']


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """(path of index.html, its Report)."""
    return make(tmp_path_factory.mktemp('a report & more #1'), COUNT, (64, 128), labels=LABELS, names=NAMES, drawn=8)


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    with browse(tmp_path_factory.mktemp('browser')) as page:
        yield page


@pytest.fixture
def page(browser, made):
    """The page just opened, on a desktop; afterwards nobody has complained and nothing came from a network."""
    browser.errors.clear()
    browser.requests.clear()
    browser.size(1280, 900)
    browser.open(made[0])
    yield browser
    browser.open('about:blank')  # what it has said until now is read, and is not the next test's
    assert browser.errors == []
    assert all(address.startswith(('file:', 'data:', 'about:')) for address in browser.requests)


def names_shown(page):
    return page.run('[...document.querySelectorAll(".gallery .name")].map(e => e.textContent)')


def choose(page, name, value):
    page.run(f'(() => {{ const e = document.getElementById("{name}"); e.value = "{value}"; '
             'e.dispatchEvent(new Event("change")) })()')


def expected(values, worst_is_low=True):
    """Names in the order of NumPy's stable sort, images without a value last."""
    values = np.array(values, float)
    order = np.argsort(values if worst_is_low else -values, kind='stable')  # NaN last
    return [NAMES[i] for i in order]


def settled(page, element='document.querySelector("#stage")'):
    """All pictures in an element are there."""
    page.wait(f'[...{element}.querySelectorAll("img[src]")].every(i => i.complete && i.naturalWidth > 0)')
    page.run('new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))')


def test_only_what_is_in_view_is_read(page, made):
    for _ in range(2):  # also where it is opened again
        thumbs = [address for address in page.requests if '/thumb_' in address]
        assert len(thumbs) < 20, 'the gallery is below the window'
        page.open('about:blank')
        page.requests.clear()
        page.open(made[0])
    page.run('scrollTo({top: 1e9, behavior: "instant"})')
    page.wait('document.querySelectorAll(".gallery .open").length === 70')
    assert not [address for address in page.requests if '/pictures/' in address and '/thumb_' not in address]
    page.run('document.querySelector(".gallery li").scrollIntoView({behavior: "instant"})')
    settled(page, 'document.querySelector(".gallery li")')
    assert len(names_shown(page)) == COUNT and set(names_shown(page)) == set(NAMES)


def test_charts_are_drawn_when_they_come_into_view(page):
    assert page.run('document.querySelector("#chart-scores[data-drawn]")') is None
    for name in ('iou', 'categories', 'boundary', 'confusion', 'reliability', 'loss', 'scores'):
        page.run(f'document.getElementById("chart-{name}").scrollIntoView()')
        page.wait(f'document.querySelector("#chart-{name}[data-drawn] .main-svg") !== null')
    labels = page.run('[...document.querySelectorAll("#chart-iou .ytick text")].map(e => e.textContent)')
    assert labels == list(LABELS.names), 'also the one that looks like markup'
    assert page.run('document.querySelectorAll("#chart-iou pattern").length') >= 10


def cell(page, actual, predicted):
    """Where a cell of the heat map is in the window."""
    page.run('document.getElementById("chart-confusion").scrollIntoView({behavior: "instant"})')
    page.wait('document.querySelector("#chart-confusion[data-drawn] .main-svg") !== null')
    return page.run(f'''(() => {{ const plot = document.getElementById("chart-confusion");
        const box = plot.getBoundingClientRect(), {{xaxis, yaxis}} = plot._fullLayout;
        return [box.x + xaxis._offset + xaxis.l2p({predicted}), box.y + yaxis._offset + yaxis.l2p({actual})] }})()''')


def test_heat_map_tells_counts_and_shares_and_sorts_the_images(page, made):
    matrix = made[1].result['matrix']
    off = matrix - np.diag(np.diag(matrix))
    actual, predicted = np.unravel_index(off.argmax(), off.shape)
    x, y = cell(page, actual, predicted)
    page.mouse('mouseMoved', x, y)
    page.wait('document.querySelector("#chart-confusion .hovertext") !== null')
    words = page.run('document.querySelector("#chart-confusion .hovertext").textContent')
    count = matrix[actual, predicted]
    assert f'{count:,} pixels' in words and f'{100 * count / matrix[actual].sum():.2f} % of' in words
    assert f'{100 * count / matrix[:, predicted].sum():.2f} % of all predicted' in words
    page.mouse('mousePressed', x, y)
    page.mouse('mouseReleased', x, y)
    page.wait('document.getElementById("sort").value === "confusion"')
    shares = [record['matrix'][actual, predicted] / record['matrix'].sum() for record in made[1].result['images']]
    assert names_shown(page) == expected(shares, worst_is_low=False)[:60]
    assert LABELS.names[actual] in page.run('document.getElementById("count").textContent')


def test_images_are_sorted_by_score_class_error_confidence_and_name(page, made):
    records = made[1].result['images']
    assert names_shown(page) == expected([r['miou'] for r in records])[:60]
    choose(page, 'class', 15)
    by_class = [r['iou'][15] for r in records]
    assert np.isnan(by_class).any(), 'some images have none of it'
    assert names_shown(page) == expected(by_class)[:60]
    page.click('#order')
    assert names_shown(page) == expected(by_class, worst_is_low=False)[:60]
    page.click('#order')
    choose(page, 'sort', 'errors')
    wrong = [(r['matrix'][15].sum() + r['matrix'][:, 15].sum() - 2 * r['matrix'][15, 15]) / r['matrix'].sum()
             for r in records]
    assert names_shown(page) == expected(wrong, worst_is_low=False)[:60]
    choose(page, 'class', '')
    assert names_shown(page) == expected([r['accuracy'] for r in records])[:60]
    choose(page, 'sort', 'confidence')
    assert names_shown(page) == expected([image['confidence'] for image in made[1].images])[:60]
    choose(page, 'sort', 'name')
    assert names_shown(page)[1:4] == NAMES[:3] and names_shown(page)[0] == NAMES[-2]
    page.run('document.getElementById("find").focus()')
    for letter in 'ÜBUNG':
        page.key(letter)
    assert names_shown(page) == [NAMES[-1]]
    assert page.run('document.getElementById("count").textContent').startswith('1 of 70 images by name')


def test_a_largest_error_sorts_the_images_by_the_keyboard(page, made):
    page.run('document.querySelector(".confusions button").focus()')
    page.key('Enter')
    page.wait('document.getElementById("sort").value === "confusion"')


def test_viewer_by_the_keyboard(page, made):
    page.run('document.querySelector(".gallery .open").focus({preventScroll: true})')
    page.key('ArrowRight')
    page.key('Enter')
    page.wait('document.getElementById("viewer").open')
    order = expected([r['miou'] for r in made[1].result['images']])
    name = 'document.getElementById("viewer-name").textContent'
    assert page.run(name) == order[1] and page.run('location.hash').startswith('#image-')
    page.key('ArrowRight')
    page.key('ArrowRight')
    page.key('ArrowLeft')
    assert page.run(name) == order[2]
    assert page.run('document.getElementById("viewer-place").textContent') == '3 of 70'
    titles = page.run('[...document.querySelectorAll("#strip button")].map(e => e.textContent)')
    assert titles == ['1 Input', '2 Ground truth', '3 Prediction', '4 Errors', '5 Confidence', '6 Scale that decided',
                      '7 Attention, scale 0.5', '8 Attention, scale 1', '9 Attention, scale 2']
    for i, title in enumerate(titles, 1):
        page.key(str(i))
        assert page.run('document.getElementById("right-title").textContent') == title[2:]
    page.key('4', modifiers=8)  # Shift
    assert page.run('document.getElementById("left-title").textContent') == 'Errors'
    settled(page, 'document.getElementById("strip")')  # every picture of the image can be shown
    cut = 'document.getElementById("stage").style.getPropertyValue("--cut")'
    before = page.run(cut)
    page.key('.')
    page.key('.')
    page.key(',')
    assert (before, page.run(cut)) == ('50%', '55%')
    page.run('document.getElementById("slider").focus()')
    page.key('ArrowLeft')
    assert page.run(cut) == '54%' and page.run(name) == order[2], 'the slider has the arrow keys'
    page.key('Home')
    assert page.run(cut) == '0%'
    page.key('z')
    assert page.run('document.getElementById("stage").offsetWidth') == 128
    page.key('Escape')
    page.wait('!document.getElementById("viewer").open')
    page.wait(f'document.activeElement.querySelector(".name")?.textContent === "{order[2]}"')  # back where one was


def stage(page):
    """The stage as int (H, W, 3) RGB."""
    settled(page)
    x, y, width, height = page.run('(() => { const r = document.getElementById("stage").getBoundingClientRect(); '
                                   'return [r.x, r.y, r.width, r.height] })()')
    return page.picture()[round(y):round(y + height), round(x):round(x + width)]


def test_slider_shows_one_picture_left_and_another_right(page, made):
    page.click('.gallery .open')
    page.wait('document.getElementById("viewer").open')
    index = NAMES.index(page.run('document.getElementById("viewer-name").textContent'))
    folder = made[0].parent / made[1].images[index]['folder']
    page.key('2', modifiers=8)  # left: ground truth
    page.key('3')  # right: prediction
    page.run('document.getElementById("slider").focus()')
    shown = {}
    for key, name in (('End', 'truth.png'), ('Home', 'prediction.png')):
        page.key(key)
        shown[name] = stage(page)
        wanted = cv2.imread(str(folder / name))[..., ::-1]
        wanted = cv2.resize(wanted, shown[name].shape[1::-1], interpolation=cv2.INTER_LINEAR).astype(int)
        inside = np.s_[:-40, 10:-10]  # without the titles and the edge
        assert np.abs(shown[name][inside] - wanted[inside]).mean() < 6
    page.run('document.getElementById("slider").value = 50; '
             'document.getElementById("slider").dispatchEvent(new Event("input"))')
    both = stage(page)
    middle = both.shape[1] // 2
    for part, name in ((np.s_[:-40, 10:middle - 6], 'truth.png'), (np.s_[:-40, middle + 6:-10], 'prediction.png')):
        assert (both[part] == shown[name][part]).all()
    assert (both[:, middle - 1:middle + 1] == 255).all(), 'the edge'
    box = page.run('(() => { const r = document.getElementById("stage").getBoundingClientRect(); '
                   'return [r.x, r.y, r.width] })()')
    for kind, share in (('mousePressed', 0.5), ('mouseMoved', 0.2), ('mouseReleased', 0.2)):
        page.mouse(kind, box[0] + share * box[2], box[1] + 30, pressed=True)
    assert page.run('document.getElementById("slider").value') == '20', 'dragged'
    page.run('document.activeElement.blur()')
    page.key('4')
    assert page.run('document.getElementById("right-title").textContent') == 'Errors', 'wherever the focus is'


def test_a_class_is_shown_alone_for_those_who_cannot_tell_its_colour(page, made):
    page.click('.gallery .open')
    page.wait('document.getElementById("viewer").open')
    page.key('3')
    page.run('document.getElementById("slider").focus()')
    page.key('Home')
    page.key('z')  # a pixel of the picture is one of the screen
    every = stage(page)
    page.key('1')
    photo = stage(page)
    page.key('3')
    road = [i for i, name in enumerate(page.run(LEGEND)) if name == 'road'][0]
    page.run(f'document.querySelectorAll("#viewer-legend button")[{road}].focus()')
    page.key('Enter')
    alone = stage(page)
    inside = np.s_[:-30, 10:]  # without the titles and the edge
    is_road = (every == CITYSCAPES.palette[0]).all(-1)[inside]
    assert 50 < is_road.sum() < is_road.size - 50
    assert (alone[inside][is_road] == CITYSCAPES.palette[0]).all()
    assert (alone[inside][~is_road] == photo[inside][~is_road]).all()
    assert page.run('document.activeElement.getAttribute("aria-pressed")') == 'true', 'the focus stays'
    page.key('Enter')
    assert (stage(page) == every).all()


LEGEND = '[...document.querySelectorAll("#viewer-legend button")].map(e => e.textContent)'


def test_a_link_leads_to_an_image(page, made):
    page.open('about:blank')
    page.open(f'{made[0].as_uri()}#image-5')
    assert page.run('document.getElementById("viewer").open')
    assert page.run('document.getElementById("viewer-name").textContent') == NAMES[5]


OVERFLOW = '''(() => { const wide = [...document.querySelectorAll("main *, header *, dialog[open] *")].filter(e => {
  const r = e.getBoundingClientRect();
  return r.width && r.right > innerWidth + 1 && !e.closest(".scroll, .strip, nav, .view, .skip") }).map(e => e.outerHTML
  .slice(0, 120)); return [document.documentElement.scrollWidth - innerWidth, wide] })()'''


@pytest.mark.parametrize('width, phone', [(320, True), (390, True), (768, True), (1280, False), (2560, False)])
def test_nothing_is_wider_than_the_window(page, width, phone):
    page.size(width, 800, phone=phone)
    for name in ('iou', 'confusion', 'reliability', 'loss'):
        page.run(f'document.getElementById("chart-{name}").scrollIntoView({{behavior: "instant"}})')
        page.wait(f'document.querySelector("#chart-{name}[data-drawn] .main-svg") !== null')
    over, wide = page.run(OVERFLOW)
    assert over <= 0 and wide == []
    page.click('.gallery .open')
    page.wait('document.getElementById("viewer").open')
    over, wide = page.run(OVERFLOW)
    assert over <= 0 and wide == []
    assert page.run('document.getElementById("stage").offsetWidth') > 0.5 * min(width, 1280)


CONTRAST = '''(() => { const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => { v /= 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 }); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$/.test(c)) return c } };
  return [...document.querySelectorAll("h1, h2, h3, .soft, dd, dt, nav a, button, select, td, summary")]
    .filter(e => e.offsetWidth).map(e => { const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.outerHTML.slice(0, 80)] })
    .sort((a, b) => a[0] - b[0])[0] })()'''  # WCAG 2.2, contrast ratio


@pytest.mark.parametrize('dark', [False, True])
def test_light_and_dark_can_be_read(page, dark):
    page.size(1280, 900, dark=dark)
    background = page.run('getComputedStyle(document.body).backgroundColor')
    assert (sum(map(int, re.findall(r'\d+', background))) < 200) == dark
    ratio, element = page.run(CONTRAST)
    assert ratio >= 4.5, element
    page.wait('document.querySelector("#chart-iou[data-drawn] .main-svg") !== null')
    ink = page.run('getComputedStyle(document.querySelector("#chart-iou .ytick text")).fill')
    assert (sum(map(int, re.findall(r'\d+', ink)[:3])) > 400) == dark


def test_theme_can_be_chosen(page):
    page.wait('document.querySelector("#chart-iou[data-drawn] .main-svg") !== null')
    for wanted in ('light', 'dark', 'system'):
        page.click('#theme')
        assert page.run('document.getElementById("theme").textContent') == f'Theme: {wanted}'
        dark = wanted == 'dark'
        assert (sum(map(int, re.findall(r'\d+', page.run('getComputedStyle(document.body).backgroundColor')))) < 200) \
            == dark
        page.wait('(() => { const c = getComputedStyle(document.querySelector("#chart-iou .ytick text")).fill'
                  f'.match(/\\d+/g).map(Number); return (c[0] + c[1] + c[2] > 400) === {str(dark).lower()} }})()')


def test_controls_have_names(page):
    """What a screen reader would say of every control."""
    page.click('.gallery .open')
    page.wait('document.getElementById("viewer").open')
    nameless = page.run('[...document.querySelectorAll("button, input, select, dialog, [role=img]")].filter(e => '
                        '!e.textContent.trim() && !e.getAttribute("aria-label") && !e.labels?.length && '
                        '!e.getAttribute("aria-labelledby")).map(e => e.outerHTML)')
    assert nameless == []


@pytest.mark.parametrize('changes', [{'truth': False}, {'truth': False, 'scales': ()}, {'count': 1, 'size': (64, 640)}])
def test_other_reports_open_as_well(browser, tmp_path, changes):
    index, _ = make(tmp_path, **{'count': 2, 'size': (64, 128), **changes})
    browser.errors.clear()
    browser.size(1280, 900)
    browser.open(index)
    browser.run('document.querySelector(".plot").scrollIntoView()')
    browser.wait('document.querySelector(".plot[data-drawn] .main-svg") !== null')
    browser.click('.gallery .open')
    browser.wait('document.getElementById("viewer").open')
    settled(browser, 'document.getElementById("strip")')
    for key in ('share', 'name') if not changes.get('truth', True) else ('errors', 'name'):
        choose(browser, 'sort', key)
    assert browser.errors == []
