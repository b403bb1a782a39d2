"""The slice viewer as a reader uses it: by keys, wheel, mouse and finger, all without a kernel or a network."""

import pytest


@pytest.fixture(scope="module")
def viewed(open_pages, one_page):
    found = open_pages(one_page)
    found.viewer()
    return found


@pytest.fixture
def opened(viewed):
    """The page with the viewer as it is at first."""
    page = viewed.page
    first = page.locator("#mtv-viewer select.case option").first.get_attribute("value")
    page.locator("#mtv-viewer select.case").select_option(first)
    page.wait_for_function(f"document.getElementById('mtv-viewer').dataset.patient === '{first}'")
    page.locator("#mtv-viewer [data-plane=transaxial]").click()
    for name in ("man", "cnn"):
        page.locator(f"#mtv-viewer input.{name}").check()
    for name, value in {"angle": "0", "zoom": "1", "opacity": "60"}.items():
        page.locator(f"#mtv-viewer input.{name}").fill(value)
    yield viewed
    assert viewed.errors == []
    assert viewed.requests == []


def at(opened) -> list[int]:
    return [int(part) for part in opened.page.evaluate("document.getElementById('mtv-viewer').dataset.at").split()]


def stage(opened):
    opened.page.locator("#mtv-viewer .stage").focus()
    return opened.page.keyboard


def test_arrow_keys_turn_slices_and_the_picture_changes(opened):
    keyboard, (x, y, z), before = stage(opened), at(opened), opened.canvas("ct")
    keyboard.press("ArrowUp")
    assert at(opened) == [x, y, z + 1]
    assert opened.canvas("ct") != before
    keyboard.press("ArrowDown")
    keyboard.press("ArrowLeft")
    assert at(opened) == [x, y, z - 1]
    keyboard.press("Home")
    assert at(opened)[2] == 0
    keyboard.press("ArrowDown")
    assert at(opened)[2] == 0  # there is no slice below the first
    keyboard.press("End")
    keyboard.press("PageDown")
    assert at(opened)[2] == int(opened.in_viewer("return root.querySelector('.slice').max")) - 5


def test_the_wheel_over_a_picture_turns_its_own_plane(opened):
    x, y, z = at(opened)
    opened.page.locator("#mtv-viewer .main .panel").first.hover()
    opened.page.mouse.wheel(0, -100)
    opened.page.wait_for_function(f"document.getElementById('mtv-viewer').dataset.at === '{x} {y} {z + 1}'")
    opened.page.locator("#mtv-viewer .others [data-view=sagittal]").hover()
    opened.page.mouse.wheel(0, 100)
    opened.page.wait_for_function(f"document.getElementById('mtv-viewer').dataset.at === '{x - 1} {y} {z + 1}'")


def test_the_slider_goes_to_a_slice(opened):
    opened.page.locator("#mtv-viewer input.slice").fill("3")
    assert at(opened)[2] == 3
    assert "Slice 4 of" in opened.page.locator("#mtv-viewer .position").inner_text()


def test_a_click_takes_all_planes_to_the_place(opened):
    panel = opened.page.locator("#mtv-viewer .main [data-layer=pet]")
    box = panel.bounding_box()
    before = opened.in_viewer("return [...root.querySelectorAll('.others canvas')].map((one) => one.toDataURL())")
    panel.click(position={"x": box["width"] * 0.9, "y": box["height"] * 0.1})
    sizes = opened.in_viewer("return root.querySelector('.main canvas').width")
    assert sizes > 0
    x, y, _ = at(opened)
    assert x > 2 * y  # right and up in the picture: the patient's left and front
    after = opened.in_viewer("return [...root.querySelectorAll('.others canvas')].map((one) => one.toDataURL())")
    assert before[:2] != after[:2]


@pytest.mark.parametrize("source", ["man", "cnn"])
def test_contours_are_switched_by_box_and_key(opened, source):
    before = opened.canvas("pet")
    opened.page.locator(f"#mtv-viewer input.{source}").uncheck()
    without = opened.canvas("pet")
    assert without != before
    stage(opened).press({"man": "m", "cnn": "c"}[source])
    assert opened.canvas("pet") == before


def test_the_suv_window_darkens_the_pet_and_leaves_the_ct(opened):
    pet, ct = opened.canvas("pet"), opened.canvas("ct")
    opened.page.locator("#mtv-viewer input.suv").fill("2")
    assert opened.canvas("pet") != pet
    assert opened.canvas("ct") == ct
    assert opened.page.locator("#mtv-viewer .suv-number").inner_text() == "2"
    stage(opened).press("+")
    assert opened.page.locator("#mtv-viewer .suv-number").inner_text() == "3"


def test_planes_are_chosen_by_button_and_key(opened):
    opened.page.locator("#mtv-viewer [data-plane=coronal]").click()
    assert opened.page.locator("#mtv-viewer .main [data-view=coronal]").count() == 3
    stage(opened).press("3")
    assert opened.page.locator("#mtv-viewer .main [data-view=sagittal]").count() == 3
    assert opened.page.locator("#mtv-viewer [data-plane=sagittal]").get_attribute("aria-pressed") == "true"


def test_the_mip_turns(opened):
    mip = "return root.querySelector('[data-layer=mip] canvas').toDataURL()"
    before = opened.in_viewer(mip)
    opened.page.locator("#mtv-viewer input.angle").fill("90")
    assert opened.in_viewer(mip) != before


def test_the_zoom_enlarges_the_upper_row_about_the_crosshair(opened):
    before = [opened.canvas("ct"), opened.in_viewer("return root.querySelector('.others canvas').toDataURL()")]
    opened.page.locator("#mtv-viewer input.zoom").fill("3")
    after = [opened.canvas("ct"), opened.in_viewer("return root.querySelector('.others canvas').toDataURL()")]
    assert [one != other for one, other in zip(before, after, strict=True)] == [True, False]
    for _ in range(2):
        stage(opened).press("z")  # once more, and back
    assert opened.canvas("ct") == before[0]


def test_the_picker_loads_another_case(opened):
    select = opened.page.locator("#mtv-viewer select.case")
    names = select.locator("option").evaluate_all("all => all.map((one) => one.value)")
    assert len(names) >= 3
    before, picture = select.input_value(), opened.canvas("pet")
    opened.page.locator("#mtv-viewer button.after").click()
    opened.page.wait_for_function(f"document.getElementById('mtv-viewer').dataset.patient === '{names[1]}'")
    assert select.input_value() == names[1] != before
    assert opened.canvas("pet") != picture
    select.select_option(names[0])
    opened.page.wait_for_function(f"document.getElementById('mtv-viewer').dataset.patient === '{names[0]}'")


def test_a_row_of_the_lesion_table_goes_to_the_lesion(opened):
    stage(opened).press("Home")
    row = opened.page.locator("#mtv-viewer tbody tr").first
    row.click()
    there = at(opened)
    assert there[2] > 0
    assert row.get_attribute("aria-selected") == "true"
    opened.page.locator("#mtv-viewer .stage").focus()
    opened.page.keyboard.press("Home")
    row.focus()
    opened.page.keyboard.press("Enter")
    assert at(opened) == there


def test_a_link_below_a_patients_picture_opens_it_in_the_viewer(opened):
    link = opened.page.locator("a[data-case]").last
    patient = link.get_attribute("data-case")
    link.click()
    opened.page.wait_for_function(f"document.getElementById('mtv-viewer').dataset.patient === '{patient}'")


def test_everything_is_reached_by_the_tab_key(opened):
    opened.page.locator("#mtv-viewer button.before").focus()
    reached = []
    for _ in range(25):
        opened.page.keyboard.press("Tab")
        reached.append(
            opened.in_viewer(
                "return root.activeElement ? root.activeElement.className || root.activeElement.dataset.plane : ''"
            )
        )
    for name in ("case", "after", "transaxial", "stage", "slice", "man", "cnn", "suv", "opacity", "angle"):
        assert any(name in one for one in reached), (name, reached)


def test_a_new_slice_is_drawn_at_once(opened, record_property):
    """Median over 30 keys, from the event to the next frame. The target is 50 ms; the bound is for busy machines."""
    stage(opened)
    times = opened.page.evaluate(
        """async () => {
          const root = document.getElementById("mtv-viewer").shadowRoot, box = root.querySelector(".stage"), times = [];
          for (let i = 0; i < 30; i++) {
            const began = performance.now();
            const key = i % 2 ? "ArrowUp" : "ArrowDown";
            box.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, composed: true }));
            await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
            times.push(performance.now() - began);
          }
          return times.sort((a, b) => a - b);
        }"""
    )
    record_property("median_ms", times[15])
    assert times[15] < 200


def test_on_a_phone_a_finger_turns_slices_and_a_tap_places_the_crosshair(open_page, one_page):
    opened = open_page(one_page, width=360)
    opened.viewer()
    panel = opened.page.locator("#mtv-viewer .main .panel").first
    box, (x, y, _) = panel.bounding_box(), at(opened)
    assert box["width"] > 120
    opened.page.touchscreen.tap(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.75)
    assert at(opened)[:2] != [x, y]
    slice_before = at(opened)[2]
    swipe(opened.page, box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, right=-40)
    assert at(opened)[2] < slice_before
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360


def swipe(page, x: float, y: float, right: int) -> None:
    """A finger that is put down, moved sideways by so many pixels and lifted."""
    touch = page.context.new_cdp_session(page)
    for kind, step in (("touchStart", 0), ("touchMove", 0.5), ("touchMove", 1), ("touchEnd", None)):
        points = [] if step is None else [{"x": x + right * step, "y": y}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


def test_a_case_whose_file_is_missing_says_so_and_shows_the_plate(open_page, one_page, studied):
    gone = sorted((studied / "report" / "viewers").glob("*.js"))
    kept = {path: path.read_bytes() for path in gone}
    for path in gone:
        path.unlink()
    try:
        opened = open_page(one_page)
        opened.page.locator("#mtv-viewer").scroll_into_view_if_needed()
        message = opened.page.locator("#mtv-viewer .message")
        message.locator("code").wait_for()
        assert "copy the whole folder of the report" in message.inner_text()
        assert message.locator("img").count() == 1
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
