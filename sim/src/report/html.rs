//! Elements of HTML and SVG: closed when they are written, and escaped, whatever is put into them.

use std::fmt::{self, Display, Formatter};

/// An element. Its name and the names of its attributes are the program's own; values and text can be anything.
#[derive(Debug)]
pub(super) struct Element {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    content: Vec<Content>,
}

#[derive(Debug)]
enum Content {
    Text(String),
    Element(Element),
}

/// Makes an element.
pub(super) const fn element(name: &'static str) -> Element {
    Element {
        name,
        attributes: Vec::new(),
        content: Vec::new(),
    }
}

/// Makes an element of some class that holds a text.
pub(super) fn text(name: &'static str, class: &'static str, text: impl Display) -> Element {
    let made = element(name).text(text);
    if class.is_empty() {
        made
    } else {
        made.with("class", class)
    }
}

impl Element {
    pub(super) fn with(mut self, attribute: &'static str, value: impl Display) -> Self {
        self.attributes.push((attribute, value.to_string()));
        self
    }

    /// Sets several coordinates, to a tenth of a unit.
    pub(super) fn at<const N: usize>(self, places: [(&'static str, f64); N]) -> Self {
        places.into_iter().fold(self, |made, (name, place)| {
            made.with(name, format_args!("{place:.1}"))
        })
    }

    pub(super) fn text(mut self, text: impl Display) -> Self {
        self.content.push(Content::Text(text.to_string()));
        self
    }

    pub(super) fn child(mut self, child: Self) -> Self {
        self.content.push(Content::Element(child));
        self
    }

    pub(super) fn children(mut self, children: impl IntoIterator<Item = Self>) -> Self {
        self.content.extend(children.into_iter().map(Content::Element));
        self
    }
}

/// A text in which nothing is markup.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for part in self.0.split_inclusive(['&', '<', '>', '"']) {
            let last = part.chars().next_back();
            let plain = part.trim_end_matches(['&', '<', '>', '"']);
            f.write_str(plain)?;
            match last {
                Some('&') => f.write_str("&amp;")?,
                Some('<') => f.write_str("&lt;")?,
                Some('>') => f.write_str("&gt;")?,
                Some('"') => f.write_str("&quot;")?,
                _ => {}
            }
        }
        Ok(())
    }
}

impl Display for Element {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "<{}", self.name)?;
        for (name, value) in &self.attributes {
            write!(f, " {name}=\"{}\"", Escaped(value))?;
        }
        f.write_str(">")?;
        // It is the one element here that has no end.
        if self.name == "meta" {
            return Ok(());
        }
        for content in &self.content {
            match content {
                Content::Text(text) => Escaped(text).fmt(f)?,
                Content::Element(element) => element.fmt(f)?,
            }
        }
        write!(f, "</{}>", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_put_into_an_element_is_markup() {
        let made = element("p")
            .with("title", "a\"b<c")
            .text("1 < 2 && \"x\" > <script>")
            .child(element("b"));
        assert_eq!(
            made.to_string(),
            "<p title=\"a&quot;b&lt;c\">1 &lt; 2 &amp;&amp; &quot;x&quot; &gt; &lt;script&gt;<b></b></p>"
        );
    }
}
